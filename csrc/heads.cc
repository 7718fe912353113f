#include "heads.h"

#include <algorithm>
#include <numeric>

#include "value_overlap.h"

namespace vllm_relational {
namespace {

// Columns tried as the first cell of the rest: those whose values begin alike most.
constexpr size_t kMostHeads = 3;

size_t at(int64_t index) { return static_cast<size_t>(index); }

// A column that may be the first cell of the rest.
struct Candidate {
  int32_t column;
  int32_t factor;  // -1 when it is in none
  std::vector<int32_t> needs;  // factors of the columns that must stand before, -1 for a column in none
  std::vector<int32_t> rank_of_row;
  std::vector<int64_t> length_of_rank;
  OverlapOfRanks overlaps;
};

int64_t saved_by_sorting(const Candidate& candidate, const std::vector<int32_t>& rows, std::vector<int32_t>& ranks) {
  ranks.clear();
  for (const int32_t row : rows) ranks.push_back(candidate.rank_of_row[at(row)]);
  std::sort(ranks.begin(), ranks.end());
  int64_t sum = 0;
  for (size_t i = 1; i < ranks.size(); ++i) {
    const bool equal = ranks[i - 1] == ranks[i];
    sum += equal ? candidate.length_of_rank[at(ranks[i])] : candidate.overlaps.between(ranks[i - 1], ranks[i]);
  }
  return sum;
}

int32_t factor_of(const PlanTable& table, int32_t column) {
  for (int32_t f = 0; f < table.num_factors; ++f) {
    const auto& columns = table.columns_of[at(f)];
    if (std::find(columns.begin(), columns.end(), column) != columns.end()) return f;
  }
  return -1;
}

Candidate make_candidate(const PlanRequest& request, const PlanTable& table, int32_t column) {
  const ValueOverlaps& overlaps = request.overlaps[at(column)];
  Candidate result{column, factor_of(table, column), {}, {}, {}, OverlapOfRanks(overlaps.shared)};
  for (const int32_t needed : request.precedence.needs(column)) result.needs.push_back(factor_of(table, needed));
  for (const int32_t code : request.codes.column(column)) result.rank_of_row.push_back(overlaps.rank[at(code)]);
  result.length_of_rank.resize(overlaps.rank.size());
  for (size_t v = 0; v < overlaps.rank.size(); ++v) {
    result.length_of_rank[at(overlaps.rank[v])] = request.lengths[at(column)][v];
  }
  return result;
}

std::vector<Candidate> most_alike(const PlanRequest& request, const PlanTable& table) {
  std::vector<std::pair<int64_t, int32_t>> alike;
  for (int32_t c = 0; c < static_cast<int32_t>(request.codes.num_columns); ++c) {
    const auto& shared = request.overlaps[at(c)].shared;
    const int64_t sum = std::accumulate(shared.begin(), shared.end(), int64_t{0});
    if (sum > 0) alike.emplace_back(-sum, c);
  }
  std::sort(alike.begin(), alike.end());
  std::vector<Candidate> result;
  for (size_t i = 0; i < std::min(alike.size(), kMostHeads); ++i) {
    result.push_back(make_candidate(request, table, alike[i].second));
  }
  return result;
}

struct Best {
  int32_t column = -1;
  int64_t saved = 0;
};

class HeadSearch {
 public:
  HeadSearch(PrefixTree& tree, std::vector<Candidate> candidates)
      : tree_(tree), candidates_(std::move(candidates)), column_of_node_(at(tree.num_nodes()), -1) {}

  Heads run() {
    std::vector<int32_t> rows;
    const int64_t saved = visit(tree_.root(), rows);
    return {std::move(column_of_node_), saved};
  }

 private:
  // The best head for rows directly below the node.
  Best best_head(int32_t node, const std::vector<int32_t>& rows) {
    Best best;
    for (const Candidate& candidate : candidates_) {
      if (!may_be_head(candidate, node)) continue;
      const int64_t saved = saved_by_sorting(candidate, rows, ranks_);
      if (saved > best.saved) best = {candidate.column, saved};
    }
    return best;
  }

  // Not shared already, and what it needs is.
  bool may_be_head(const Candidate& candidate, int32_t node) const {
    const int32_t* codes = tree_.codes(node);
    if (candidate.factor >= 0 && codes[candidate.factor] >= 0) return false;
    return std::all_of(candidate.needs.begin(), candidate.needs.end(), [&](int32_t f) {
      return f >= 0 && codes[f] >= 0 && is_usable(tree_.table(), codes, f);
    });
  }

  // An inner child with the rows below it, and what its settled subtree saves.
  struct Branch {
    int32_t node;
    std::vector<int32_t> rows;
    int64_t saved;
  };

  // Settles the subtree; appends its rows. Returns what it saves in all: sharing below and at the node, and heads.
  int64_t visit(int32_t node, std::vector<int32_t>& rows) {
    std::vector<int32_t> leaves;
    std::vector<Branch> branches;
    for (const int32_t child : tree_.children(node)) {
      if (tree_.is_leaf(child)) {
        leaves.push_back(child);
      } else {
        Branch branch{child, {}, 0};
        branch.saved = visit(child, branch.rows);
        branches.push_back(std::move(branch));
      }
    }
    const Best best = dissolve_branches(node, leaves, branches);
    column_of_node_[at(node)] = best.column;
    rows.insert(rows.end(), leaves.begin(), leaves.end());
    int64_t saved = (tree_.num_children(node) - 1) * tree_.weight(node) + best.saved;
    for (const Branch& branch : branches) {
      rows.insert(rows.end(), branch.rows.begin(), branch.rows.end());
      saved += branch.saved;
    }
    return saved;
  }

  // Moves the rows of branches that save more so directly below the node, into `leaves`.
  Best dissolve_branches(int32_t node, std::vector<int32_t>& leaves, std::vector<Branch>& branches) {
    const Best before = best_head(node, leaves);
    std::vector<int32_t> pool = pool_of(leaves, branches);
    const Best all = best_head(node, pool);
    if (branches.empty() || all.column < 0) return before;
    const Candidate& candidate = of_column(all.column);
    std::vector<Branch> moving = branches;
    while (keep_worthwhile(node, candidate, pool, moving)) pool = pool_of(leaves, moving);
    const Best after = best_head(node, pool);
    int64_t gain = after.saved - before.saved;
    for (const Branch& branch : moving) gain += gain_without(node, branch);
    if (moving.empty() || gain <= 0) return before;
    for (const Branch& branch : moving) {
      tree_.flatten(branch.node);
      tree_.dissolve(branch.node);
      std::erase_if(branches, [&](const Branch& b) { return b.node == branch.node; });
    }
    leaves = std::move(pool);
    return after;
  }

  static std::vector<int32_t> pool_of(const std::vector<int32_t>& leaves, const std::vector<Branch>& branches) {
    std::vector<int32_t> pool = leaves;
    for (const Branch& branch : branches) pool.insert(pool.end(), branch.rows.begin(), branch.rows.end());
    return pool;
  }

  // What the sharing at the node gains less what the branch loses when its rows move up, heads not counted.
  int64_t gain_without(int32_t node, const Branch& branch) const {
    return (static_cast<int64_t>(branch.rows.size()) - 1) * tree_.weight(node) - branch.saved;
  }

  // Drops branches that lose by moving even among all of the pool. Returns whether any went: a smaller pool gains less.
  bool keep_worthwhile(int32_t node, const Candidate& candidate, const std::vector<int32_t>& pool,
                       std::vector<Branch>& moving) {
    ranks_.clear();
    for (const int32_t row : pool) ranks_.push_back(candidate.rank_of_row[at(row)]);
    std::sort(ranks_.begin(), ranks_.end());
    return std::erase_if(moving, [&](const Branch& branch) {
             int64_t gain = gain_without(node, branch);
             for (const int32_t row : branch.rows) gain += gain_among_ranks(candidate, candidate.rank_of_row[at(row)]);
             return gain <= 0;
           }) > 0;
  }

  // What a rank adds to the neighbours in ranks_: the greater of its overlaps with the two beside it.
  int64_t gain_among_ranks(const Candidate& candidate, int32_t rank) const {
    const auto here = std::lower_bound(ranks_.begin(), ranks_.end(), rank);
    const auto next = here + 1;
    if (next != ranks_.end() && *next == rank) return candidate.length_of_rank[at(rank)];
    const int64_t above = next == ranks_.end() ? 0 : candidate.overlaps.between(rank, *next);
    return here == ranks_.begin() ? above : std::max(above, candidate.overlaps.between(*(here - 1), rank));
  }

  const Candidate& of_column(int32_t column) const {
    return *std::find_if(candidates_.begin(), candidates_.end(), [&](auto& c) { return c.column == column; });
  }

  PrefixTree& tree_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> column_of_node_;
  std::vector<int32_t> ranks_;
};

}  // namespace

Heads choose_heads(PrefixTree& tree, const PlanRequest& request) {
  if (request.overlaps.empty() || tree.table().num_rows < 2) {
    return {std::vector<int32_t>(at(tree.num_nodes()), -1), tree.saved()};
  }
  return HeadSearch(tree, most_alike(request, tree.table())).run();
}

}  // namespace vllm_relational
