// How the matrix products of CPUs are shared among threads (kernels/cpu/gemm_tile.inc).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace octet::kernels::cpu {

inline constexpr int64_t kTaskRows = 512;     // most of a task: bounds the repeated packing of B
inline constexpr int64_t kTaskColumns = 512;  // likewise, of A

// Rows of the result of one group, and the length of its summed axis.
struct GroupSize {
  int64_t rows, depth;
};

// A part of the result: rows of one group, counted from its first, by columns.
struct Task {
  int64_t group, row, rows, column, columns;
};
struct Tasks {
  std::vector<Task> all;
  std::vector<int64_t> ends;  // of each thread's share (core/base/thread_pool.h)
};

// Covers `columns` columns of each group. A thread's share is as many rows as are its part of the work, so that it
// reads what it wrote; tasks are as wide as leaves a few for each thread if they are not short, columns shared evenly
// in units of `unit`. Where there are too few rows for that, or B, wider than the result is high, would be packed more
// often for it, shares are of columns; where too few columns, rows are cut further. The longest of a share come first,
// so that threads finish together. Where work is cut makes no difference to any sum.
Tasks cut_tasks(int threads, std::span<const GroupSize> groups, int64_t columns, int64_t unit);

}  // namespace octet::kernels::cpu
