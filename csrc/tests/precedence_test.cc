#include "planner/precedence.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "check.h"
#include "random_tables.h"

using namespace vllm_relational;

namespace {

using Pairs = std::vector<std::pair<int32_t, int32_t>>;

void needs_are_closed() {
  const Precedence precedence(4, Pairs{{0, 1}, {1, 3}}, {});
  CHECK(precedence.needs(0).empty());
  CHECK(precedence.needs(2).empty());
  CHECK((precedence.needs(3) == std::vector<int32_t>{0, 1}));
  CHECK(!precedence.has_middle_pins());
}

void pins_at_the_ends_are_needs() {
  const std::vector<int32_t> pinned{0, 1, 4};
  const Precedence precedence(5, {}, pinned);
  CHECK(!precedence.has_middle_pins());
  CHECK((precedence.needs(1) == std::vector<int32_t>{0}));
  CHECK((precedence.needs(2) == std::vector<int32_t>{0, 1}));
  CHECK((precedence.needs(4) == std::vector<int32_t>{0, 1, 2, 3}));
  FieldOrder order{4, 3, 2, 1, 0};
  precedence.repair(order);
  CHECK((order == FieldOrder{0, 1, 3, 2, 4}));
}

void pins_in_the_middle_are_not() {
  const std::vector<int32_t> pinned{0, 2};
  const Precedence precedence(4, {}, pinned);
  CHECK(precedence.has_middle_pins());
  CHECK(precedence.allows(FieldOrder{0, 1, 2, 3}));
  CHECK(precedence.allows(FieldOrder{0, 3, 2, 1}));
  CHECK(!precedence.allows(FieldOrder{0, 2, 1, 3}));
  CHECK(!precedence.allows(FieldOrder{1, 0, 2, 3}));
}

// Straight from the definition.
bool is_allowed(const FieldOrder& order, const Pairs& before, const std::vector<int32_t>& pinned) {
  const auto place = [&](int32_t column) { return std::find(order.begin(), order.end(), column) - order.begin(); };
  return std::all_of(before.begin(), before.end(), [&](const auto& p) { return place(p.first) < place(p.second); }) &&
         std::all_of(pinned.begin(), pinned.end(), [&](int32_t column) { return place(column) == column; });
}

bool may_come(const Precedence& precedence, int32_t column, const FieldOrder& out) {
  const auto& needs = precedence.needs(column);
  return std::all_of(needs.begin(), needs.end(),
                     [&](int32_t needed) { return std::find(out.begin(), out.end(), needed) != out.end(); });
}

// Again and again the first column that may come.
FieldOrder repair_slowly(const Precedence& precedence, FieldOrder order) {
  FieldOrder out;
  while (!order.empty()) {
    const auto next =
        std::find_if(order.begin(), order.end(), [&](int32_t column) { return may_come(precedence, column, out); });
    out.push_back(*next);
    order.erase(next);
  }
  return out;
}

size_t allowed_prefix(const Precedence& precedence, const FieldOrder& order) {
  FieldOrder out;
  for (const int32_t column : order) {
    if (!may_come(precedence, column, out)) break;
    out.push_back(column);
  }
  return out.size();
}

std::vector<int32_t> pins_at_the_ends(int32_t num_columns, std::mt19937& random) {
  std::vector<int32_t> pinned;
  const auto first = static_cast<int32_t>(draw(random, 0, 2)), last = static_cast<int32_t>(draw(random, 0, 2));
  for (int32_t c = 0; c < num_columns; ++c) {
    if (c < first || c >= num_columns - last) pinned.push_back(c);
  }
  return pinned;
}

void repairs(std::mt19937& random) {
  const auto num_columns = static_cast<int32_t>(draw(random, 0, 12));
  const Pairs before = some_pairs(num_columns, draw(random, 0, 8), random);
  const std::vector<int32_t> pinned = pins_at_the_ends(num_columns, random);
  const Precedence precedence(num_columns, before, pinned);
  CHECK(!precedence.has_middle_pins());
  const FieldOrder order = random_order(num_columns, random);
  CHECK(precedence.allows(order) == is_allowed(order, before, pinned));
  FieldOrder repaired = order;
  precedence.repair(repaired);
  CHECK(is_allowed(repaired, before, pinned));
  CHECK(precedence.allows(repaired));
  CHECK(repaired == repair_slowly(precedence, order));
  CHECK(std::equal(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(allowed_prefix(precedence, order)),
                   repaired.begin()));
  FieldOrder again = repaired;
  precedence.repair(again);
  CHECK(again == repaired);
}

void any_pins(std::mt19937& random) {
  const int64_t num_columns = draw(random, 1, 5);
  const Pairs before = some_pairs(num_columns, draw(random, 0, 3), random);
  const std::vector<int32_t> pinned = some_columns(num_columns, 3, random);
  const Precedence precedence(num_columns, before, pinned);
  FieldOrder order(at(num_columns));
  std::iota(order.begin(), order.end(), 0);
  do {
    CHECK(precedence.allows(order) == is_allowed(order, before, pinned));
  } while (std::next_permutation(order.begin(), order.end()));
}

}  // namespace

int main() {
  needs_are_closed();
  pins_at_the_ends_are_needs();
  pins_in_the_middle_are_not();
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) repairs(random);
  for (int i = 0; i < 300; ++i) any_pins(random);
  return 0;
}
