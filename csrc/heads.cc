#include "heads.h"

#include <algorithm>
#include <numeric>

#include "cluster.h"

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

HeadColumn make_head(const PlanRequest& request, const PlanTable& table, int32_t column) {
  const ValueOverlaps& overlaps = request.overlaps[at(column)];
  HeadColumn head{column, table.factor_of[at(column)], {}, {}, {}, OverlapOfRanks(overlaps.shared)};
  for (const int32_t needed : request.precedence.needs(column)) head.needs.push_back(table.factor_of[at(needed)]);
  for (const int32_t code : request.codes.column(column)) head.rank_of_row.push_back(overlaps.rank[at(code)]);
  head.length_of_rank.resize(overlaps.rank.size());
  for (size_t v = 0; v < overlaps.rank.size(); ++v) {
    head.length_of_rank[at(overlaps.rank[v])] = request.lengths[at(column)][v];
  }
  return head;
}

// What rows with these ranks save when sorted.
int64_t saved_by_sorting(const HeadColumn& head, std::vector<int32_t>& ranks) {
  std::sort(ranks.begin(), ranks.end());
  int64_t sum = 0;
  for (size_t i = 1; i < ranks.size(); ++i) {
    const bool equal = ranks[i - 1] == ranks[i];
    sum += equal ? head.length_of_rank[at(ranks[i])] : head.overlaps.between(ranks[i - 1], ranks[i]);
  }
  return sum;
}

// How the values alone begin alike, each once.
bool any_alike(const ValueOverlaps& overlaps) {
  return std::any_of(overlaps.shared.begin(), overlaps.shared.end(), [](int64_t shared) { return shared > 0; });
}

class HeadSearch {
 public:
  HeadSearch(PrefixTree& tree, const std::vector<HeadColumn>& columns, bool branches_count, Workers& workers)
      : tree_(tree), columns_(columns), branches_count_(branches_count), workers_(workers),
        counts_(make_counts(tree.table())) {}

  Heads run() {
    std::vector<int32_t> rows;
    const int64_t saved = visit(tree_.root(), true, rows);
    return {std::move(column_of_node_), saved};
  }

 private:
  // An inner child with the rows below it, and what its settled subtree saves.
  struct Branch {
    int32_t node;
    std::vector<int32_t> rows;
    int64_t saved;
  };

  struct Best {
    const HeadColumn* head = nullptr;
    int64_t saved = 0;
  };

  // Settles the subtree; appends its rows. Returns what it saves in all: sharing below and at the node, and heads.
  int64_t visit(int32_t node, bool may_dissolve, std::vector<int32_t>& rows) {
    workers_.check();
    std::vector<int32_t> leaves;
    std::vector<Branch> branches;
    for (const int32_t child : tree_.children(node)) {
      if (tree_.is_leaf(child)) {
        leaves.push_back(child);
      } else {
        branches.push_back(settled(child, may_dissolve));
      }
    }
    Best best = best_head(node, leaves, branches);
    if (may_dissolve && !branches.empty() && dissolve_branches(node, best, leaves, branches)) {
      cluster_anew(node, *best.head, leaves, branches);
      best.saved = saved_as_head(*best.head, leaves, branches);
    }
    set_head(node, best);
    int64_t saved = (tree_.num_children(node) - 1) * tree_.weight(node) + best.saved;
    rows.insert(rows.end(), leaves.begin(), leaves.end());
    for (const Branch& branch : branches) {
      rows.insert(rows.end(), branch.rows.begin(), branch.rows.end());
      saved += branch.saved;
    }
    return saved;
  }

  Branch settled(int32_t node, bool may_dissolve) {
    Branch branch{node, {}, 0};
    branch.saved = visit(node, may_dissolve, branch.rows);
    return branch;
  }

  void set_head(int32_t node, const Best& best) {
    if (column_of_node_.size() <= at(node)) column_of_node_.resize(at(node) + 1, -1);
    column_of_node_[at(node)] = best.head == nullptr ? -1 : best.head->column;
  }

  Best best_head(int32_t node, const std::vector<int32_t>& leaves, const std::vector<Branch>& branches) {
    Best best;
    for (const HeadColumn& head : columns_) {
      if (!may_be_head(head, node)) continue;
      const int64_t saved = saved_as_head(head, leaves, branches);
      if (saved > best.saved) best = {&head, saved};
    }
    return best;
  }

  // Not shared already, and what it needs is.
  bool may_be_head(const HeadColumn& head, int32_t node) const {
    const int32_t* codes = tree_.codes(node);
    if (head.factor >= 0 && codes[head.factor] >= 0) return false;
    return std::all_of(head.needs.begin(), head.needs.end(), [&](int32_t f) {
      return f >= 0 && codes[f] >= 0 && is_usable(tree_.table(), codes, f);
    });
  }

  // A branch that shares the column can start with it too, but then not with what its siblings start with.
  int64_t saved_as_head(const HeadColumn& head, const std::vector<int32_t>& leaves,
                        const std::vector<Branch>& branches) {
    ranks_.clear();
    for (const int32_t row : leaves) ranks_.push_back(head.rank_of_row[at(row)]);
    for (const Branch& branch : branches) {
      const int32_t* codes = tree_.codes(branch.node);
      if (!branches_count_) break;
      if (head.factor < 0 || codes[head.factor] < 0) continue;
      ranks_.push_back(head.rank_of_row[at(branch.rows.front())]);
    }
    return saved_by_sorting(head, ranks_);
  }

  // Moves the rows of branches that save more so directly below the node, into `leaves`. Returns whether any did.
  bool dissolve_branches(int32_t node, Best& best, std::vector<int32_t>& leaves, std::vector<Branch>& branches) {
    std::vector<int32_t> pool = pool_of(leaves, branches);
    const Best all = best_head(node, pool, {});
    if (all.head == nullptr) return false;
    std::vector<Branch> moving = branches;
    while (keep_worthwhile(node, *all.head, pool, moving)) pool = pool_of(leaves, moving);
    if (moving.empty()) return false;
    std::vector<Branch> staying;
    for (const Branch& branch : branches) {
      const auto is_it = [&](const Branch& other) { return other.node == branch.node; };
      if (std::none_of(moving.begin(), moving.end(), is_it)) staying.push_back(branch);
    }
    const Best after = best_head(node, pool, staying);
    int64_t gain = after.saved - best.saved;
    for (const Branch& branch : moving) gain += gain_without(node, branch);
    if (gain <= 0) return false;
    for (const Branch& branch : moving) {
      tree_.flatten(branch.node);
      tree_.dissolve(branch.node);
    }
    best = after;
    leaves = std::move(pool);
    branches = std::move(staying);
    return true;
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
  bool keep_worthwhile(int32_t node, const HeadColumn& head, const std::vector<int32_t>& pool,
                       std::vector<Branch>& moving) {
    ranks_.clear();
    for (const int32_t row : pool) ranks_.push_back(head.rank_of_row[at(row)]);
    std::sort(ranks_.begin(), ranks_.end());
    return std::erase_if(moving, [&](const Branch& branch) {
             int64_t gain = gain_without(node, branch);
             for (const int32_t row : branch.rows) gain += gain_among_ranks(head, head.rank_of_row[at(row)]);
             return gain <= 0;
           }) > 0;
  }

  // What a rank adds to the neighbours in ranks_: the greater of its overlaps with the two beside it.
  int64_t gain_among_ranks(const HeadColumn& head, int32_t rank) const {
    const auto here = std::lower_bound(ranks_.begin(), ranks_.end(), rank);
    const auto next = here + 1;
    if (next != ranks_.end() && *next == rank) return head.length_of_rank[at(rank)];
    const int64_t above = next == ranks_.end() ? 0 : head.overlaps.between(rank, *next);
    return here == ranks_.begin() ? above : std::max(above, head.overlaps.between(*(here - 1), rank));
  }

  // Leaves with the same first cell share it, and may share more: they become branches.
  void cluster_anew(int32_t node, const HeadColumn& head, std::vector<int32_t>& leaves, std::vector<Branch>& branches) {
    if (head.factor < 0) return;
    const auto code = [&](int32_t row) { return tree_.codes(row)[head.factor]; };
    std::stable_sort(leaves.begin(), leaves.end(), [&](int32_t a, int32_t b) { return code(a) < code(b); });
    std::vector<int32_t> alone;
    for (size_t begin = 0, end = 0; begin < leaves.size(); begin = end) {
      while (end < leaves.size() && code(leaves[end]) == code(leaves[begin])) ++end;
      const std::vector<int32_t> members(leaves.begin() + static_cast<std::ptrdiff_t>(begin),
                                         leaves.begin() + static_cast<std::ptrdiff_t>(end));
      if (members.size() == 1 || members.size() == at(tree_.num_children(node))) {
        alone.insert(alone.end(), members.begin(), members.end());
        continue;
      }
      const int32_t joined = tree_.join(members);
      cluster_below(tree_, joined, Choice::kGreatestGain, counts_, workers_);
      branches.push_back(settled(joined, false));
    }
    leaves = std::move(alone);
  }

  PrefixTree& tree_;
  const std::vector<HeadColumn>& columns_;
  bool branches_count_;
  Workers& workers_;
  CodeCounts counts_;
  std::vector<int32_t> column_of_node_;
  std::vector<int32_t> ranks_;
};

}  // namespace

std::vector<HeadColumn> head_columns(const PlanRequest& request, const PlanTable& table, Workers& workers) {
  if (request.overlaps.empty() || table.num_rows < 2) return {};
  std::vector<std::pair<int64_t, int32_t>> worth(request.overlaps.size());
  workers.for_each(worth.size(), [&](size_t c) {
    const auto column = static_cast<int32_t>(c);
    worth[c] = {0, column};
    if (!any_alike(request.overlaps[c])) return;
    const HeadColumn head = make_head(request, table, column);
    std::vector<int32_t> ranks = head.rank_of_row;
    worth[c].first = -saved_by_sorting(head, ranks);
  });
  std::erase_if(worth, [](const auto& entry) { return entry.first == 0; });
  std::sort(worth.begin(), worth.end());
  std::vector<HeadColumn> result;
  for (size_t i = 0; i < std::min(worth.size(), at(table.limits.most_heads)); ++i) {
    result.push_back(make_head(request, table, worth[i].second));
  }
  return result;
}

Heads choose_heads(PrefixTree& tree, const std::vector<HeadColumn>& columns, bool branches_count, Workers& workers) {
  if (columns.empty()) return {{}, tree.saved()};
  return HeadSearch(tree, columns, branches_count, workers).run();
}

}  // namespace vllm_relational
