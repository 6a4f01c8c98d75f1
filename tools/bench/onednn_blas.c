/* The BLAS interface's sgemm, column-major, from oneDNN's, row-major: preloaded, it gives PyTorch of Debian the fastest
   float32 product there is on a CPU. Built by compare_step.py. */
#include <dnnl.h>

void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
            const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
            const int* ldc) {
  dnnl_sgemm(*transb, *transa, *n, *m, *k, *alpha, b, *ldb, a, *lda, *beta, c, *ldc);
}
