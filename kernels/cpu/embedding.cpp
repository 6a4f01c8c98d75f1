#include "kernels/embedding.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

// Columns of the table that one thread owns in the backward pass: it adds them for all tokens in order, so tokens that
// share a row never meet and the order of the sum is that of the formula.
constexpr int64_t kEmbeddingColumns = 64;

void embedding_forward(const EmbeddingForward& args, Stream& stream) {
  const int64_t size = size_of(args.weight.dtype()), bytes = args.weight.cols() * size;
  const int32_t* ids = args.ids.data<int32_t>();
  const char* weight = args.weight.data<char>();
  char* y = args.y.data<char>();
  const int64_t from = args.weight.row_stride() * size, to = args.y.row_stride() * size;
  stream.parallel_for(args.y.rows(), 32,
                      [=](int64_t t) { std::memcpy(y + t * to, weight + ids[t] * from, size_t(bytes)); });
}

void embedding_backward(const EmbeddingBackward& args, Stream& stream) {
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    const int64_t T = args.dy.rows(), D = args.dy.cols();
    const int32_t* ids = args.ids.data<int32_t>();
    stream.parallel_chunks(D, kEmbeddingColumns, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < T; ++t) {
        const Scalar* dy = args.dy.row<Scalar>(t) + begin;
        float* dweight = args.dweight.row<float>(ids[t]) + begin;
        for_lanes(end - begin, [=](int64_t d, auto lanes) {
          lanes.store(dweight + d, lanes.load(dweight + d) + lanes.load(dy + d));
        });
      }
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(embedding_forward, EmbeddingForward)
OCTET_CPU_KERNEL(embedding_backward, EmbeddingBackward)
