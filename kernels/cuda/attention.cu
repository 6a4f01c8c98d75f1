#include "kernels/attention.h"

#include "kernels/cuda/attention_plain.cuh"
#include "kernels/cuda/attention_tensor.cuh"

namespace octet::kernels::cuda {
namespace {

bool fits_tensor_form(int head_dim, int value_dim) {
  return head_dim <= kWidestRoundedHead && value_dim <= kWidestRoundedHead;
}

template <int kRowTiles, int kWidth>
void launch_tensor_forward(const char* name, const ForwardHeads<bfloat16>& a, Stream& stream) {
  using Form = TensorForward<kRowTiles, kWidth>;
  launch(name, head_grid(name, a.heads, a.batch, ceil_div<int64_t>(a.queries, Form::kQueries)), kTensorThreads,
         Form::shared_bytes(a.q.columns, a.v.columns), stream, tensor_forward_kernel<kRowTiles, kWidth>, a);
}

template <class Scalar>
void forward(const char* name, const ForwardHeads<Scalar>& a, Stream& stream) {
  if (a.queries == 0 || a.batch == 0) return;
  if constexpr (std::is_same_v<Scalar, bfloat16>) {
    if (fits_tensor_form(a.q.columns, a.v.columns)) {
      if (a.v.columns <= 64) return launch_tensor_forward<2, 64>(name, a, stream);
      if (a.v.columns <= 128) return launch_tensor_forward<2, 128>(name, a, stream);
      return launch_tensor_forward<1, 192>(name, a, stream);
    }
  }
  launch(
      name,
      head_grid(name, a.heads, a.batch, ceil_div<int64_t>(a.queries, kKeyBlock), ceil_div(a.v.columns, kPlainColumns)),
      kPlainThreads, 0, stream, plain_forward_kernel<Scalar>, a);
}

template <bool kOfKeys, int kWidth, int kValueWidth>
void launch_tensor_backward(const BackwardHeads<bfloat16>& a, Stream& stream) {
  using Form = TensorBackward<kOfKeys, kWidth, kValueWidth>;
  const char* const name = kOfKeys ? "attention_backward, dk and dv" : "attention_backward, dq";
  launch(name, head_grid(name, kOfKeys ? a.heads / a.group : a.heads, a.batch, ceil_div<int64_t>(a.S, Form::kRows)),
         kTensorThreads, Form::shared_bytes(a.q.columns, a.v.columns), stream,
         tensor_backward_kernel<kOfKeys, kWidth, kValueWidth>, a);
}
void tensor_backward(const BackwardHeads<bfloat16>& a, Stream& stream) {
  if (a.q.columns <= 64 && a.v.columns <= 64) {
    launch_tensor_backward<true, 64, 64>(a, stream);
  } else if (a.q.columns <= 128 && a.v.columns <= 128) {
    launch_tensor_backward<true, 128, 128>(a, stream);
  } else if (a.v.columns <= 128) {
    launch_tensor_backward<true, 192, 128>(a, stream);
  } else {
    launch_tensor_backward<true, 192, 0>(a, stream);
    launch_tensor_backward<true, 0, 192>(a, stream);
  }
  if (a.q.columns <= 64) return launch_tensor_backward<false, 64, 0>(a, stream);
  if (a.q.columns <= 128) return launch_tensor_backward<false, 128, 0>(a, stream);
  launch_tensor_backward<false, 192, 0>(a, stream);
}

template <Gradient gradient, class Scalar>
void launch_plain_backward(const BackwardHeads<Scalar>& a, Stream& stream) {
  const char* const name = "attention_backward";
  const int columns = gradient == Gradient::kValues ? a.v.columns : a.q.columns;
  launch(name,
         head_grid(name, gradient == Gradient::kQueries ? a.heads : a.heads / a.group, a.batch,
                   ceil_div<int64_t>(a.S, kKeyBlock), ceil_div(columns, kPlainColumns)),
         kPlainThreads, 0, stream, plain_backward_kernel<gradient, Scalar>, a);
}

}  // namespace

void attention_forward(const AttentionForward& args, Stream& stream) {
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    const int64_t S = args.batch == 0 ? 0 : args.q.rows() / args.batch;
    forward<Scalar>("attention_forward",
                    {.q = head_rows<Scalar>(args.q, args.num_heads),
                     .k = head_rows<Scalar>(args.k, args.num_kv_heads),
                     .v = head_rows<Scalar>(args.v, args.num_kv_heads),
                     .o = args.o.data<Scalar>(),
                     .o_stride = args.o.row_stride(),
                     .lse = args.lse.data<float>(),
                     .lse_stride = args.lse.row_stride(),
                     .batch = args.batch,
                     .queries = S,
                     .keys = S,
                     .heads = args.num_heads,
                     .group = args.num_heads / args.num_kv_heads,
                     .scale = args.scale},
                    stream);
  });
}

void attention_backward(const AttentionBackward& args, Stream& stream) {
  const int64_t T = args.q.rows(), H = args.num_heads;
  if (T == 0) return;
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    Workspace<float> delta("attention_backward", T * H, stream);
    const HeadRows<Scalar> grad_o = head_rows<Scalar>(args.grad_o, H);
    launch("attention_backward, delta", blocks(ceil_div<int64_t>(T * H * 16, kPlainThreads)), kPlainThreads, 0, stream,
           attention_delta_kernel<Scalar>, grad_o, head_rows<Scalar>(args.o, H), delta.data(), T, H);
    const BackwardHeads<Scalar> a{.q = head_rows<Scalar>(args.q, H),
                                  .k = head_rows<Scalar>(args.k, args.num_kv_heads),
                                  .v = head_rows<Scalar>(args.v, args.num_kv_heads),
                                  .grad_o = grad_o,
                                  .lse = args.lse.data<float>(),
                                  .delta = delta.data(),
                                  .lse_stride = args.lse.row_stride(),
                                  .dq = args.dq.data<Scalar>(),
                                  .dk = args.dk.data<Scalar>(),
                                  .dv = args.dv.data<Scalar>(),
                                  .dq_stride = args.dq.row_stride(),
                                  .dk_stride = args.dk.row_stride(),
                                  .dv_stride = args.dv.row_stride(),
                                  .batch = args.batch,
                                  .S = T / args.batch,
                                  .heads = H,
                                  .group = H / args.num_kv_heads,
                                  .scale = args.scale};
    if constexpr (std::is_same_v<Scalar, bfloat16>) {
      if (fits_tensor_form(a.q.columns, a.v.columns)) return tensor_backward(a, stream);
    }
    launch_plain_backward<Gradient::kQueries>(a, stream);
    launch_plain_backward<Gradient::kKeys>(a, stream);
    launch_plain_backward<Gradient::kValues>(a, stream);
  });
}

void attention_decode(const AttentionDecode& args, Stream& stream) {
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    forward<Scalar>("attention_decode",
                    {.q = head_rows<Scalar>(args.q, args.num_heads),
                     .k = head_rows<Scalar>(args.k_cache, args.num_kv_heads),
                     .v = head_rows<Scalar>(args.v_cache, args.num_kv_heads),
                     .o = args.o.data<Scalar>(),
                     .o_stride = args.o.row_stride(),
                     .lse = nullptr,
                     .lse_stride = 0,
                     .batch = 1,
                     .queries = args.q.rows(),
                     .keys = args.length,
                     .heads = args.num_heads,
                     .group = args.num_heads / args.num_kv_heads,
                     .scale = args.scale},
                    stream);
  });
}

}  // namespace octet::kernels::cuda
