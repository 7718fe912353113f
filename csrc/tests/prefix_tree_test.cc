// Trees under each of their own changes: joining, detaching and attaching, dissolving, flattening.
#include "planner/prefix_tree.h"

#include <algorithm>
#include <vector>

#include "check.h"
#include "planner/cluster.h"
#include "trees.h"

using namespace vllm_relational;

namespace {

// A random row leaves its place and comes back below the root, or beside a row that it shares the place's prefix with.
void rows_leave_and_come_back(std::mt19937& random) {
  TreeParts parts(some_table(6, 60, random));
  auto& [table, request, workers, plan_table, counts, tree] = parts;
  cluster_below(tree, tree.root(), kChoices[random() % std::size(kChoices)], counts, workers);
  for (int move = 0; move < 30 && plan_table.num_rows > 2; ++move) {
    const auto row = static_cast<int32_t>(draw(random, 0, plan_table.num_rows - 1));
    tree.detach(row);
    const auto other = static_cast<int32_t>((row + draw(random, 1, plan_table.num_rows - 1)) % plan_table.num_rows);
    const int32_t parent = tree.parent(other);
    const bool fits = contains(tree.codes(row), tree.codes(parent), plan_table.num_factors);
    tree.attach(row, fits ? other : tree.root());
    check_tree(tree);
  }
}

// Any children of the root below a new node, which then goes again.
void joined_children_are_dissolved_again(std::mt19937& random) {
  const Table table = some_table(6, 40, random);
  if (table.num_rows < 3) return;
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  PrefixTree tree(plan_table);
  const int64_t before = tree.saved();
  const std::vector<int32_t> rows = tree.children(tree.root());
  const auto size = static_cast<std::ptrdiff_t>(draw(random, 2, plan_table.num_rows - 1));
  const int32_t joined = tree.join({rows.begin(), rows.begin() + size});
  CHECK(tree.num_children(joined) == size && tree.parent(joined) == tree.root());
  check_tree(tree);
  CHECK(tree.saved() >= before);
  tree.dissolve(joined);
  check_tree(tree);
  CHECK(tree.saved() == before);
}

void flatten_keeps_all_rows(std::mt19937& random) {
  TreeParts parts(some_table(6, 100, random));
  auto& [table, request, workers, plan_table, counts, tree] = parts;
  cluster_below(tree, tree.root(), Choice::kClosest, counts, workers);
  tree.flatten(tree.root());
  CHECK(tree.num_children(tree.root()) == plan_table.num_rows);
  check_tree(tree);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 60; ++i) rows_leave_and_come_back(random);
  for (int i = 0; i < 60; ++i) joined_children_are_dissolved_again(random);
  for (int i = 0; i < 40; ++i) flatten_keeps_all_rows(random);
  return 0;
}
