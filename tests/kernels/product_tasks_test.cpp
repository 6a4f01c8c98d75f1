#include "kernels/cpu/product_tasks.h"

#include <catch2/catch.hpp>

#include <cmath>

#include "core/base/random.h"

namespace octet::test {
namespace {

using namespace kernels::cpu;

double work_of(const std::vector<GroupSize>& groups, const Task& task) {
  return double(task.rows * task.columns) * double(std::max<int64_t>(groups[size_t(task.group)].depth, 1));
}

// Of each element of the result, how many tasks have it.
std::vector<std::vector<int>> times_covered(const Tasks& tasks, const std::vector<GroupSize>& groups, int64_t columns) {
  std::vector<std::vector<int>> times;
  for (const GroupSize& group : groups) times.emplace_back(size_t(group.rows * columns), 0);
  for (const Task& task : tasks.all) {
    for (int64_t r = task.row; r < task.row + task.rows; ++r) {
      for (int64_t c = task.column; c < task.column + task.columns; ++c) {
        ++times[size_t(task.group)].at(size_t(r * columns + c));
      }
    }
  }
  return times;
}

std::vector<GroupSize> random_groups(uint64_t seed, int64_t most_rows) {
  const RandomStream random(seed, "groups");
  std::vector<GroupSize> groups;
  for (uint64_t g = 0; g < 1 + random.below(9, 0); ++g) {
    const bool is_empty = random.below(4, g, 1) == 0, has_depth = random.below(4, g, 2) != 0;
    groups.push_back({is_empty ? 0 : int64_t(random.below(uint64_t(most_rows), g, 3)),
                      has_depth ? int64_t(random.below(700, g, 4)) : 0});
  }
  return groups;
}

}  // namespace

TEST_CASE("tasks of a product cover each element once, and fit their bounds", "[kernels][product_tasks]") {
  const int threads = GENERATE(1, 2, 3, 16);
  const int64_t columns = GENERATE(0, 1, 64, 200, 1100), most_rows = GENERATE(20, 900);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const std::vector<GroupSize> groups = random_groups(seed, most_rows);
    const Tasks tasks = cut_tasks(threads, groups, columns, 64);
    for (const std::vector<int>& group : times_covered(tasks, groups, columns)) {
      CHECK(std::count(group.begin(), group.end(), 1) == int64_t(group.size()));
    }
    for (const Task& task : tasks.all) {
      CHECK((task.rows >= 1 && task.rows <= kTaskRows && task.columns >= 1 && task.columns <= kTaskColumns));
      CHECK(task.column % 64 == 0);
    }
    CHECK(tasks.ends.size() == size_t(threads));
    CHECK(std::is_sorted(tasks.ends.begin(), tasks.ends.end()));
    CHECK(tasks.ends.back() == int64_t(tasks.all.size()));
  }
}

TEST_CASE("no groups are no tasks", "[kernels][product_tasks]") {
  const Tasks tasks = cut_tasks(2, {}, 100, 64);
  CHECK(tasks.all.empty());
  CHECK(tasks.ends == std::vector<int64_t>{0, 0});
}

TEST_CASE("threads have equal shares of neighbouring rows, the longest task first", "[kernels][product_tasks]") {
  const int threads = GENERATE(2, 3, 8);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<GroupSize> groups = random_groups(seed, 3000);
    int64_t rows = 0;
    double all = 0, of_row = 0;  // work: of all, of one row at most
    for (const GroupSize& group : groups) {
      const double each = double(std::max<int64_t>(group.depth, 1)) * 512;
      rows += group.rows;
      all += double(group.rows) * each;
      of_row = std::max(of_row, each);
    }
    if (rows < 200 * threads) continue;
    const Tasks tasks = cut_tasks(threads, groups, 512, 64);
    int64_t begin = 0;
    std::pair<int64_t, int64_t> last_row = {-1, -1};
    for (const int64_t end : tasks.ends) {
      double share = 0;
      std::pair<int64_t, int64_t> first_of_share = {int64_t(groups.size()), 0}, last_of_share = last_row;
      for (int64_t i = begin; i < end; ++i) {
        const Task& task = tasks.all[size_t(i)];
        const double work = work_of(groups, task);
        if (i > begin) CHECK(work <= work_of(groups, tasks.all[size_t(i - 1)]));
        share += work;
        first_of_share = std::min(first_of_share, {task.group, task.row});
        last_of_share = std::max(last_of_share, {task.group, task.row + task.rows - 1});
      }
      CHECK(first_of_share > last_row);
      last_row = last_of_share;
      // A few rows, of the groups at both ends, are not worth a task of their own.
      CHECK(std::abs(share - all / threads) <= 2 * 17 * of_row);
      begin = end;
    }
  }
}

TEST_CASE("a product of few rows or many columns is shared by columns, one of little work in no small tasks",
          "[kernels][product_tasks]") {
  const Tasks few_rows = cut_tasks(2, std::vector<GroupSize>{{64, 1024}}, 4096, 64);
  REQUIRE(few_rows.ends == std::vector<int64_t>{4, 8});
  for (int64_t i = 0; i < 8; ++i) {
    const Task& task = few_rows.all[size_t(i)];
    CHECK(task.rows == 64);
    CHECK((task.column < 2048) == (i < 4));
  }
  const Tasks wide = cut_tasks(2, std::vector<GroupSize>{{512, 384}}, 8192, 64);
  for (size_t i = 0; i < wide.all.size(); ++i) {
    CHECK(wide.all[i].rows == 512);
    CHECK((wide.all[i].column < 4096) == (int64_t(i) < wide.ends[0]));
  }
  const Tasks little = cut_tasks(2, std::vector<GroupSize>{{384, 1024}}, 128, 64);
  CHECK(little.ends == std::vector<int64_t>{1, 2});
  const Tasks much = cut_tasks(2, std::vector<GroupSize>{{384, 16 * 1024}}, 128, 64);
  CHECK(much.ends.back() > 2);
}

}  // namespace octet::test
