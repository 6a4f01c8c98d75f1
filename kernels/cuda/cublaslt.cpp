#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/workspace.h"

namespace octet::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t(32) << 20;  // what NVIDIA recommends for Hopper

void check(cublasStatus_t status, const char* call) {
  require(ErrorKind::kDevice, status == CUBLAS_STATUS_SUCCESS, "{}: {}", call, cublaslt().status_string(status));
}

// destroy: which function of the library.
template <auto destroy>
struct Destroy {
  void operator()(auto* object) const { (cublaslt().*destroy)(object); }
};
template <class T, auto destroy>
using Owned = std::unique_ptr<T, Destroy<destroy>>;
using Description = Owned<cublasLtMatmulDescOpaque_t, &CublasLt::destroy_description>;
using Layout = Owned<cublasLtMatrixLayoutOpaque_t, &CublasLt::destroy_layout>;
using Preference = Owned<cublasLtMatmulPreferenceOpaque_t, &CublasLt::destroy_preference>;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kFloat32 ? CUDA_R_32F : dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
}

// The largest power of two, up to 256, on whose boundary an address lies.
uint32_t boundary_of(const void* data) {
  const uintptr_t lowest = reinterpret_cast<uintptr_t>(data) | 256;
  return uint32_t(lowest & -lowest);
}

template <class T>
void set(const Description& description, cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublaslt().set_description(description.get(), attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}
Description describe(const DenseProduct& product) {
  cublasLtMatmulDesc_t made = nullptr;
  check(cublaslt().create_description(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Description description(made);
  const auto operation = [](const DenseOperand& x) { return x.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(description, CUBLASLT_MATMUL_DESC_TRANSA, operation(product.left));
  set(description, CUBLASLT_MATMUL_DESC_TRANSB, operation(product.right));
  if (product.scales != DenseScales::kNone) {
    const bool is_one = product.scales == DenseScales::kOne;
    if (is_one) set(description, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t(1));
    set(description, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
        is_one ? CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
    set(description, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
        is_one ? CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
    set(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.left_scale);
    set(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.right_scale);
  }
  return description;
}

Layout lay_out(DType dtype, int64_t rows, int64_t columns, int64_t step) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublaslt().create_layout(&made, type_of(dtype), uint64_t(rows), uint64_t(columns), step),
        "cublasLtMatrixLayoutCreate");
  return Layout(made);
}
Layout lay_out(DType dtype, const DenseOperand& x, int64_t rows, int64_t columns) {
  return x.is_transposed ? lay_out(dtype, columns, rows, x.step) : lay_out(dtype, rows, columns, x.step);
}

// All that the choice of an algorithm depends on.
using Key = std::array<int64_t, 15>;
Key key_of(const DenseProduct& p) {
  return {int64_t(p.operands),
          int64_t(p.result_type),
          p.m,
          p.n,
          p.k,
          p.left.step,
          p.right.step,
          p.result_step,
          p.left.is_transposed,
          p.right.is_transposed,
          p.accumulate,
          int64_t(p.scales),
          boundary_of(p.left.data),
          boundary_of(p.right.data),
          boundary_of(p.result)};
}

struct Algorithm {
  bool is_there = false;
  cublasLtMatmulAlgo_t algo{};
  size_t workspace_bytes = 0;
};

// cuBLASLt on one GPU, with the algorithm of each shape seen.
class Library {
 public:
  Library() { check(cublaslt().create(&handle_), "cublasLtCreate"); }

  cublasLtHandle_t handle() const { return handle_; }
  template <class Find>
  Algorithm algorithm(const Key& key, Find&& find) {
    const std::lock_guard lock(mutex_);
    const auto found = algorithms_.find(key);
    return found != algorithms_.end() ? found->second : algorithms_[key] = find();
  }

 private:
  cublasLtHandle_t handle_ = nullptr;  // for the life of the process
  std::mutex mutex_;
  std::map<Key, Algorithm> algorithms_;
};
Library& library_of(Device device) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<Library>> libraries;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& library = libraries[device.index];
  if (library == nullptr) library = std::make_unique<Library>();
  return *library;
}

}  // namespace

bool multiply_dense(const DenseProduct& product, Stream& stream) {
  const Description description = describe(product);
  const Layout left = lay_out(product.operands, product.left, product.m, product.k);
  const Layout right = lay_out(product.operands, product.right, product.k, product.n);
  const Layout result = lay_out(product.result_type, product.m, product.n, product.result_step);
  Library& library = library_of(stream.device());
  const Algorithm chosen = library.algorithm(key_of(product), [&] {
    cublasLtMatmulPreference_t made = nullptr;
    check(cublaslt().create_preference(&made), "cublasLtMatmulPreferenceCreate");
    const Preference preference(made);
    const auto prefer = [&]<class T>(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
      check(cublaslt().set_preference(preference.get(), attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, size_t(kWorkspaceBytes));
    // Pieces of k are added in float32 and in order, or there are none.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, boundary_of(product.left.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, boundary_of(product.right.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, boundary_of(product.result));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, boundary_of(product.result));
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status =
        cublaslt().find_algorithm(library.handle(), description.get(), left.get(), right.get(), result.get(),
                                  result.get(), preference.get(), 1, &best, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && found == 0)) return Algorithm{};
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    if (best.state != CUBLAS_STATUS_SUCCESS) return Algorithm{};
    return Algorithm{.is_there = true, .algo = best.algo, .workspace_bytes = best.workspaceSize};
  });
  if (!chosen.is_there) return false;
  Workspace<std::byte> workspace("cuBLASLt", int64_t(chosen.workspace_bytes), stream);
  const float alpha = 1.0f, beta = product.accumulate ? 1.0f : 0.0f;
  check(cublaslt().matmul(library.handle(), description.get(), &alpha, product.left.data, left.get(),
                          product.right.data, right.get(), &beta, product.result, result.get(), product.result,
                          result.get(), &chosen.algo, workspace.data(), chosen.workspace_bytes, stream.cuda()),
        "cublasLtMatmul");
  return true;
}

}  // namespace octet::kernels::cuda
