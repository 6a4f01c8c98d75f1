#include "kernels/cuda/cublaslt_library.h"

#include <cublas_api.h>

#include <string>

#include "core/base/error.h"
#include "core/base/shared_library.h"

namespace octet::kernels::cuda {
namespace {

CublasLt load() {
  // As the linker would: where the system has it, or else where the build had it.
  const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  const SharedLibrary library(name.c_str(), OCTET_CUBLASLT_LIBRARY);
  if (!library.is_loaded()) {
    fail(ErrorKind::kDevice,
         {.what = fmt::format("cuBLASLt: {} cannot be loaded", name),
          .where = {},
          .why = "products of whole matrices on a GPU are its own",
          .fix = fmt::format("install the cuBLAS of CUDA {}, or set OCTET_DENSE_GEMM=octet", CUBLAS_VER_MAJOR)});
  }
  const auto find = [&](const char* function_name, auto& function) {
    require(ErrorKind::kDevice, library.find(function_name, function), "{} has no {}", name, function_name);
  };
  CublasLt all{};
  find("cublasLtCreate", all.create);
  find("cublasLtGetStatusString", all.status_string);
  find("cublasLtMatmul", all.matmul);
  find("cublasLtMatmulAlgoGetHeuristic", all.find_algorithm);
  find("cublasLtMatmulDescCreate", all.create_description);
  find("cublasLtMatmulDescSetAttribute", all.set_description);
  find("cublasLtMatmulDescDestroy", all.destroy_description);
  find("cublasLtMatrixLayoutCreate", all.create_layout);
  find("cublasLtMatrixLayoutDestroy", all.destroy_layout);
  find("cublasLtMatmulPreferenceCreate", all.create_preference);
  find("cublasLtMatmulPreferenceSetAttribute", all.set_preference);
  find("cublasLtMatmulPreferenceDestroy", all.destroy_preference);
  return all;
}

}  // namespace

const CublasLt& cublaslt() {
  static const CublasLt library = load();
  return library;
}

}  // namespace octet::kernels::cuda
