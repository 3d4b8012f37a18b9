#include <doctest/doctest.h>

#include <vector>

#include "mlx_opt/step/plan.h"

using mlx_opt::Plan;

namespace {

struct Range {
  int64_t tensor, begin, end;
};

std::vector<Range> ranges(const Plan& plan) {
  std::vector<Range> ranges;
  for (int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
    plan.visit(chunk, [&](int64_t tensor, int64_t begin, int64_t end) {
      ranges.push_back({tensor, begin, end});
    });
  }
  return ranges;
}

void check_covers(const std::vector<Plan::Extent>& extents, int64_t chunk) {
  std::vector<int64_t> reached(extents.size(), 0);
  for (const Range& range : ranges(Plan(extents, chunk))) {
    REQUIRE(range.begin == reached[range.tensor]);
    REQUIRE(range.end > range.begin);
    REQUIRE(range.begin % extents[range.tensor].grain == 0);
    reached[range.tensor] = range.end;
  }
  for (size_t tensor = 0; tensor < extents.size(); ++tensor) {
    CHECK(reached[tensor] == extents[tensor].size);
  }
}

} // namespace

TEST_CASE("every element is visited once, in order, whatever the sizes") {
  check_covers({}, 64);
  check_covers({{0}}, 64);
  check_covers({{1}}, 8192);
  check_covers({{0}, {1}, {0}, {63}, {64}, {65}, {0}}, 64);
  check_covers({{1000003}, {5}, {777}}, 8192);
  check_covers(std::vector<Plan::Extent>(1000, {33}), 100);
}

TEST_CASE("cuts fall on a tensor's own grain") {
  check_covers({{100000, 4800}, {7, 16}, {12345, 64}}, 1000);
  check_covers({{50, 1000}, {50, 1000}}, 10);
}

TEST_CASE("sizes beyond 2^31 elements are planned") {
  const int64_t huge = int64_t{5} << 32;
  const Plan plan({{huge}, {3}}, int64_t{1} << 30);
  CHECK(plan.chunks() == 21);
  const auto all = ranges(plan);
  CHECK(all.back().tensor == 1);
  CHECK(all[19].end == huge);
}

TEST_CASE("many short tensors are spread over as many chunks as one long one") {
  const Plan many(std::vector<Plan::Extent>(1000, {1000}), 10000);
  const Plan one({{1000000}}, 10000);
  CHECK(many.chunks() == one.chunks());
}
