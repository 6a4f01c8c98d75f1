#include "kernels/cpu/product_tasks.h"

#include <algorithm>

namespace octet::kernels::cpu {
namespace {

// Of what is cut, since less would repeat too much packing.
constexpr int64_t kLeastColumns = 96, kLeastRows = 64;
constexpr int64_t kLeastRowsOfShare = 128;         // of all groups
constexpr int64_t kLeastRowsOfPart = 16;           // of a group that two threads share
constexpr int64_t kLeastWork = int64_t(32) << 20;  // multiply-adds of a task, 0.3 ms, where there is a choice

// A group without a summed axis has zeros to write.
int64_t work_of_row(const GroupSize& group) { return std::max<int64_t>(group.depth, 1); }

// Neighbouring rows of one group.
struct Part {
  int64_t group, row, rows;
};

// The rows of all groups, `work` in all, cut where the share of one thread ends and that of the next begins.
std::vector<Part> cut_rows(int64_t shares, std::span<const GroupSize> groups, int64_t work) {
  std::vector<Part> parts;
  int64_t before = 0, share = 0;  // work before the group; the share of the next rows
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t rows = groups[g].rows, each = work_of_row(groups[g]);
    int64_t row = 0;
    while (row < rows) {
      int64_t end = rows;
      if (share + 1 < shares) {
        const int64_t end_of_share = (work / shares * (share + 1) - before + each / 2) / each;
        if (end_of_share < row + kLeastRowsOfPart) {
          ++share;
          continue;
        }
        if (end_of_share + kLeastRowsOfPart <= rows) end = end_of_share;
      }
      parts.push_back({int64_t(g), row, end - row});
      row = end;
    }
    before += rows * each;
  }
  return parts;
}

}  // namespace

Tasks cut_tasks(int threads, std::span<const GroupSize> groups, int64_t columns, int64_t unit) {
  if (columns == 0) return {.all = {}, .ends = std::vector<int64_t>(size_t(threads), 0)};
  int64_t rows = 0, work = 0, packings = 0;
  for (const GroupSize& group : groups) {
    rows += group.rows, work += group.rows * work_of_row(group);
    packings += (group.rows + kTaskRows - 1) / kTaskRows;
  }
  // A wide B that is packed less often than there are threads would be packed once by each.
  const bool shares_rows = rows >= threads * kLeastRowsOfShare && (packings >= threads || rows >= columns);
  const std::vector<Part> parts = cut_rows(shares_rows ? threads : 1, groups, work);

  int64_t most = kTaskRows;  // rows of a task
  const auto pieces_of = [&](const Part& part) { return (part.rows + most - 1) / most; };
  const auto all_pieces = [&] {
    int64_t pieces = 0;
    for (const Part& part : parts) pieces += pieces_of(part);
    return pieces;
  };
  const int64_t units = (columns + unit - 1) / unit;
  const int64_t wanted =
      threads == 1 ? 1 : std::clamp<int64_t>(work * columns / kLeastWork, threads, 4 * int64_t(threads));
  int64_t across = (columns + kTaskColumns - 1) / kTaskColumns;
  while (all_pieces() * across < wanted && 2 * across <= units && columns / (2 * across) >= kLeastColumns) across *= 2;
  while (all_pieces() * across < wanted && most / 2 >= kLeastRows) most /= 2;

  Tasks tasks;
  tasks.all.reserve(size_t(all_pieces() * across));
  for (const Part& part : parts) {
    const int64_t pieces = pieces_of(part);
    for (int64_t p = 0; p < pieces; ++p) {
      const int64_t begin = part.rows * p / pieces, end = part.rows * (p + 1) / pieces;
      for (int64_t c = 0; c < across; ++c) {
        const int64_t left = units * c / across * unit, right = std::min(columns, units * (c + 1) / across * unit);
        if (left < right) tasks.all.push_back({part.group, part.row + begin, end - begin, left, right - left});
      }
    }
  }

  const auto work_of = [&](const Task& task) {
    return task.rows * task.columns * work_of_row(groups[size_t(task.group)]);
  };
  int64_t done = 0;
  auto next = tasks.all.begin();
  for (int64_t t = 1; t <= threads; ++t) {
    const auto first = next;
    const int64_t end_of_share = t == threads ? work * columns : work * columns / threads * t;
    while (next != tasks.all.end() && done + work_of(*next) / 2 <= end_of_share) done += work_of(*next++);
    std::stable_sort(first, next, [&](const Task& a, const Task& b) { return work_of(a) > work_of(b); });
    tasks.ends.push_back(next - tasks.all.begin());
  }
  return tasks;
}

}  // namespace octet::kernels::cpu
