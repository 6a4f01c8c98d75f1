// What holds the memory of a device, in words: known to the room that hands tensors out (core/tensor/allocator.h), and
// wanted by kernels too, which take memory for intermediate results and may find none.
#pragma once

#include <string>

#include "core/base/device.h"

namespace octet::kernels {

using DescribeHolders = std::string (*)(Device device);
void set_describe_holders(DescribeHolders describe);
// "cuda:0, in use: weights 812.0 MiB (3 of 128.0 MiB, ...)"; the device alone where nobody hands tensors out.
std::string describe_holders(Device device);

}  // namespace octet::kernels
