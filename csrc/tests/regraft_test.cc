// Local search: never loses, never passes the best of all trees, and is the same on any number of threads.
#include "planner/regraft.h"

#include "check.h"
#include "planner/cluster.h"
#include "trees.h"

using namespace vllm_relational;

namespace {

void passes_never_lose(std::mt19937& random) {
  TreeParts parts(some_table(9, 150, random), 2);
  auto& [table, request, workers, plan_table, counts, tree] = parts;
  if (plan_table.num_factors == 0) return;
  const ValueIndex index(plan_table);
  const int64_t way = draw(random, 0, 2);  // from rows side by side, too
  if (way == 1) cluster_below(tree, tree.root(), kChoices[random() % std::size(kChoices)], counts, workers);
  if (way == 2) cluster_in_order(tree, random_order(plan_table.num_factors, random), counts);
  for (uint64_t pass = 0; pass < 4; ++pass) {
    const int64_t before = tree.saved();
    int64_t work = draw(random, 0, 1) == 0 ? 2'000 : 1'000'000;
    CHECK(regraft(tree, index, pass, work, workers) == tree.saved());
    CHECK(tree.saved() >= before && tree.saved() <= index.max_saved());
    check_tree(tree);
    if (pass != 1) continue;
    move_at_random(tree, index, pass, work);
    check_tree(tree);
  }
}

// From rows side by side; restarts find the best of nearly every small table.
void small_tables_reach_the_best_tree(std::mt19937& random) {
  int found = 0;
  for (int i = 0; i < 100; ++i) {
    Table table = random_table(3, 6, 3, 20, random);
    if (i % 2 == 1) table.before = some_pairs(table.num_columns, 1, random);
    const PlanRequest request = table.request();
    Workers workers(1);
    const PlanTable plan_table = make_plan_table(request, workers);
    const int64_t most = max_saving_of_any_tree(plan_table);
    if (plan_table.num_factors == 0) {
      CHECK(most == 0);
      ++found;
      continue;
    }
    const ValueIndex index(plan_table);
    CHECK(index.max_saved() >= most);
    PrefixTree tree(plan_table);
    int64_t best = tree.saved(), work = 1'000'000;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      best = std::max(best, regraft(tree, index, seed, work, workers));
      CHECK(best <= most);
      move_at_random(tree, index, seed, work);
      check_tree(tree);
    }
    found += best == most ? 1 : 0;
  }
  CHECK(found >= 90);
}

void all_threads_together_make_the_moves_of_one(std::mt19937& random) {
  const Table table = random_table(6, 1500, 60, 100, random);
  const PlanRequest request = table.request();
  Workers one(1);
  const PlanTable plan_table = make_plan_table(request, one);
  CodeCounts counts = make_counts(plan_table);
  PrefixTree start(plan_table);
  cluster_below(start, start.root(), Choice::kGreedy, counts, one);
  const ValueIndex index(plan_table);
  PrefixTree expected = start;
  int64_t expected_work = 10'000'000;
  regraft(expected, index, 5, expected_work, one);
  CHECK(expected.saved() > start.saved());
  for (const int num_threads : {2, 3, 7}) {
    Workers workers(num_threads);
    PrefixTree tree = start;
    int64_t work = 10'000'000;
    regraft(tree, index, 5, work, workers);
    CHECK(work == expected_work);
    CHECK(tree.num_nodes() == expected.num_nodes());
    for (int32_t node = 0; node < tree.num_nodes(); ++node) CHECK(tree.parent(node) == expected.parent(node));
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 150; ++i) passes_never_lose(random);
  small_tables_reach_the_best_tree(random);
  all_threads_together_make_the_moves_of_one(random);
  return 0;
}
