#include "planner/leading_columns.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "planner/cluster.h"
#include "planner/rank_pool.h"

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

LeadingColumn make_leading_column(const PlanRequest& request, const PlanTable& table, int32_t column) {
  const ValueOverlaps& overlaps = request.overlaps[at(column)];
  LeadingColumn made{column, table.factor_of[at(column)], {}, {}, {}, OverlapOfRanks(overlaps.shared)};
  for (const int32_t needed : request.precedence.needs(column)) made.needs.push_back(table.factor_of[at(needed)]);
  for (const int32_t code : request.codes.column(column)) made.rank_of_row.push_back(overlaps.rank[at(code)]);
  made.length_of_rank.resize(overlaps.rank.size());
  for (size_t v = 0; v < overlaps.rank.size(); ++v) {
    made.length_of_rank[at(overlaps.rank[v])] = request.lengths[at(column)][v];
  }
  return made;
}

// How the values alone begin alike, each once.
bool any_alike(const ValueOverlaps& overlaps) {
  return std::any_of(overlaps.shared.begin(), overlaps.shared.end(), [](int64_t shared) { return shared > 0; });
}

class LeadingColumnSearch {
 public:
  LeadingColumnSearch(PrefixTree& tree, const std::vector<LeadingColumn>& columns, bool branches_count,
                      Workers& workers)
      : tree_(tree), columns_(columns), branches_count_(branches_count), workers_(workers),
        counts_(make_counts(tree.table())), scratch_(make_scratch()) {}

  LeadingColumns run() {
    look_at_lowest_nodes();
    const int64_t saved = settle(tree_.root(), true).saved;
    return {std::move(column_of_node_), saved};
  }

 private:
  // A settled inner node: its rows, in rows_, and what its subtree saves.
  struct Branch {
    int32_t node;
    size_t begin, end;
    int64_t saved;
  };

  // A node on the way down: its children, and those of them that are settled.
  struct Open {
    int32_t node;
    size_t begin;  // where its rows will start
    std::vector<int32_t> leaves, inner;
    std::vector<Branch> branches;
  };

  struct Best {
    int64_t saved = 0;
    size_t leading = kNone;
  };
  static constexpr size_t kNone = ~size_t{0};

  // By leading column; one for each thread's task.
  struct Scratch {
    std::vector<RankPool> pools;
    std::vector<std::vector<int32_t>> ranks;
    std::vector<int64_t> saved;
  };

  Scratch make_scratch() const {
    Scratch scratch{{}, std::vector<std::vector<int32_t>>(columns_.size()), std::vector<int64_t>(columns_.size())};
    const int64_t values_per_rank = tree_.table().limits.values_per_rank;
    for (const LeadingColumn& column : columns_) {
      scratch.pools.emplace_back(column.overlaps, column.length_of_rank, values_per_rank);
    }
    return scratch;
  }

  // Nodes of rows alone need nothing of each other, and most nodes are such.
  void look_at_lowest_nodes() {
    const int32_t first = tree_.root();
    const auto nodes_at_a_time = static_cast<size_t>(tree_.table().limits.rows_at_a_time);
    best_of_lowest_.resize(at(tree_.num_nodes() - first));
    workers_.for_each((best_of_lowest_.size() + nodes_at_a_time - 1) / nodes_at_a_time, [&](size_t task) {
      Scratch scratch = make_scratch();
      const size_t end = std::min(best_of_lowest_.size(), (task + 1) * nodes_at_a_time);
      for (size_t i = task * nodes_at_a_time; i < end; ++i) {
        const int32_t node = first + static_cast<int32_t>(i);
        if (tree_.parent(node) < 0) continue;  // not in use, or the root
        const Open lowest = open(node);
        const auto num_rows = static_cast<int64_t>(lowest.leaves.size());
        if (!lowest.inner.empty() || num_rows >= tree_.table().limits.ranks_worth_threads) continue;
        best_of_lowest_[i] = best_column(node, lowest.leaves, {}, scratch);
      }
    });
  }

  // Once for a node: later its number may be that of another.
  std::optional<Best> take_best_of_lowest(int32_t node) {
    const size_t i = at(node - tree_.root());
    return i < best_of_lowest_.size() ? std::exchange(best_of_lowest_[i], std::nullopt) : std::nullopt;
  }

  // Settles the subtree, the lowest nodes first. On a stack of its own: trees may be as deep as rows have columns.
  Branch settle(int32_t node, bool may_dissolve) {
    std::vector<Open> stack;
    stack.push_back(open(node));
    for (;;) {
      workers_.check();
      Open& top = stack.back();
      if (top.branches.size() < top.inner.size()) {
        stack.push_back(open(top.inner[top.branches.size()]));
        continue;
      }
      const Branch settled = close(top, may_dissolve);
      stack.pop_back();
      if (stack.empty()) return settled;
      stack.back().branches.push_back(settled);
    }
  }

  Open open(int32_t node) const {
    Open result{node, rows_.size(), {}, {}, {}};
    for (const int32_t child : tree_.children(node)) {
      (tree_.is_leaf(child) ? result.leaves : result.inner).push_back(child);
    }
    return result;
  }

  // What a node saves in all whose branches are settled: sharing below and at it, and leading columns.
  Branch close(Open& node, bool may_dissolve) {
    rows_.insert(rows_.end(), node.leaves.begin(), node.leaves.end());
    const size_t end = rows_.size();
    const std::optional<Best> known = take_best_of_lowest(node.node);
    Best best = known ? *known : best_column(node.node, node.leaves, node.branches, scratch_);
    if (may_dissolve && !node.branches.empty() && dissolve_branches(node.node, best, node.leaves, node.branches)) {
      cluster_anew(node.node, best.leading, node.leaves, node.branches);
      best.saved = saved_by_leading(best.leading, node.leaves, node.branches, scratch_);
      rows_.resize(end);  // the same rows as before, grouped anew
    }
    set_leading_column(node.node, best);
    int64_t saved = (tree_.num_children(node.node) - 1) * tree_.weight(node.node) + best.saved;
    for (const Branch& branch : node.branches) saved += branch.saved;
    return {node.node, node.begin, end, saved};
  }

  std::span<const int32_t> rows_of(const Branch& branch) const {
    return std::span(rows_).subspan(branch.begin, branch.end - branch.begin);
  }

  void set_leading_column(int32_t node, const Best& best) {
    if (column_of_node_.size() <= at(node)) column_of_node_.resize(at(node) + 1, -1);
    column_of_node_[at(node)] = best.leading == kNone ? -1 : columns_[best.leading].column;
  }

  Best best_column(int32_t node, const std::vector<int32_t>& leaves, const std::vector<Branch>& branches,
                 Scratch& scratch) {
    std::vector<int64_t>& saved = scratch.saved;
    const auto look = [&](size_t leading) {
      saved[leading] = may_lead(columns_[leading], node) ? saved_by_leading(leading, leaves, branches, scratch) : 0;
    };
    const auto num_ranks = static_cast<int64_t>(leaves.size() + branches.size());
    if (num_ranks >= tree_.table().limits.ranks_worth_threads) {
      workers_.for_each(columns_.size(), look);
    } else {
      for (size_t leading = 0; leading < columns_.size(); ++leading) look(leading);
    }
    const auto most = std::max_element(saved.begin(), saved.end());
    return *most > 0 ? Best{*most, static_cast<size_t>(most - saved.begin())} : Best{};
  }

  // Not shared already, and what it needs is.
  bool may_lead(const LeadingColumn& column, int32_t node) const {
    const int32_t* codes = tree_.codes(node);
    if (column.factor >= 0 && codes[column.factor] >= 0) return false;
    return std::all_of(column.needs.begin(), column.needs.end(), [&](int32_t f) {
      return f >= 0 && codes[f] >= 0 && is_usable(tree_.table(), codes, f);
    });
  }

  // A branch that shares the column can start with it too, but then not with what its siblings start with.
  int64_t saved_by_leading(size_t leading, const std::vector<int32_t>& leaves, const std::vector<Branch>& branches,
                        Scratch& scratch) {
    const LeadingColumn& column = columns_[leading];
    std::vector<int32_t>& ranks = ranks_of(leading, leaves, scratch);
    for (const Branch& branch : branches) {
      if (!branches_count_ || column.factor < 0) break;
      if (tree_.codes(branch.node)[column.factor] < 0) continue;
      ranks.push_back(column.rank_of_row[at(rows_[branch.begin])]);
    }
    return scratch.pools[leading].saved(ranks);
  }

  // Valid until the next call for the same column.
  std::vector<int32_t>& ranks_of(size_t leading, const std::vector<int32_t>& rows, Scratch& scratch) {
    std::vector<int32_t>& ranks = scratch.ranks[leading];
    ranks.clear();
    for (const int32_t row : rows) ranks.push_back(columns_[leading].rank_of_row[at(row)]);
    return ranks;
  }

  // Moves the rows of branches that save more so directly below the node, into `leaves`. Returns whether any did.
  bool dissolve_branches(int32_t node, Best& best, std::vector<int32_t>& leaves, std::vector<Branch>& branches) {
    std::vector<int32_t> pool = pool_of(leaves, branches);
    const Best all = best_column(node, pool, {}, scratch_);
    if (all.leading == kNone) return false;
    std::vector<Branch> moving = branches, staying;
    for (int64_t round = 0; round < tree_.table().limits.dissolving_rounds; ++round) {
      if (!keep_worthwhile(node, all.leading, pool, moving, staying)) break;
      pool = pool_of(leaves, moving);
    }
    if (moving.empty()) return false;
    const Best after = best_column(node, pool, staying, scratch_);
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

  std::vector<int32_t> pool_of(const std::vector<int32_t>& leaves, const std::vector<Branch>& branches) const {
    std::vector<int32_t> pool = leaves;
    for (const Branch& branch : branches) pool.insert(pool.end(), rows_of(branch).begin(), rows_of(branch).end());
    return pool;
  }

  // What the sharing at the node gains less what the branch loses when its rows move up, leading columns not counted.
  int64_t gain_without(int32_t node, const Branch& branch) const {
    return static_cast<int64_t>(branch.end - branch.begin - 1) * tree_.weight(node) - branch.saved;
  }

  // Branches that lose by moving even among all of the pool go from `moving` to `staying`. Returns whether any did: a
  // smaller pool gains less.
  bool keep_worthwhile(int32_t node, size_t leading, const std::vector<int32_t>& pool, std::vector<Branch>& moving,
                       std::vector<Branch>& staying) {
    const LeadingColumn& column = columns_[leading];
    scratch_.pools[leading].fill(ranks_of(leading, pool, scratch_));
    const auto first_staying = std::stable_partition(moving.begin(), moving.end(), [&](const Branch& branch) {
      int64_t gain = gain_without(node, branch);
      for (const int32_t row : rows_of(branch)) gain += scratch_.pools[leading].gain(column.rank_of_row[at(row)]);
      return gain > 0;
    });
    const bool any = first_staying != moving.end();
    staying.insert(staying.end(), first_staying, moving.end());
    moving.erase(first_staying, moving.end());
    return any;
  }

  // Leaves with the same first cell share it, and may share more: they become branches.
  void cluster_anew(int32_t node, size_t leading, std::vector<int32_t>& leaves, std::vector<Branch>& branches) {
    const int32_t factor = columns_[leading].factor;
    if (factor < 0) return;
    const auto code = [&](int32_t row) { return tree_.codes(row)[factor]; };
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
      branches.push_back(settle(joined, false));
    }
    leaves = std::move(alone);
  }

  PrefixTree& tree_;
  const std::vector<LeadingColumn>& columns_;
  bool branches_count_;
  Workers& workers_;
  CodeCounts counts_;
  Scratch scratch_;
  std::vector<std::optional<Best>> best_of_lowest_;  // by inner node, the root the first: of nodes of rows alone
  std::vector<int32_t> rows_;    // those of settled nodes: below each of them side by side
  std::vector<int32_t> column_of_node_;
};

}  // namespace

std::vector<LeadingColumn> find_leading_columns(const PlanRequest& request, const PlanTable& table, Workers& workers) {
  if (request.overlaps.empty() || table.num_rows < 2) return {};
  std::vector<std::pair<int64_t, int32_t>> worth(request.overlaps.size());
  workers.for_each(worth.size(), [&](size_t c) {
    const auto column = static_cast<int32_t>(c);
    worth[c] = {0, column};
    if (!any_alike(request.overlaps[c])) return;
    const LeadingColumn made = make_leading_column(request, table, column);
    std::vector<int32_t> ranks = made.rank_of_row;
    worth[c].first = -RankPool(made.overlaps, made.length_of_rank, table.limits.values_per_rank).saved(ranks);
  });
  std::erase_if(worth, [](const auto& entry) { return entry.first == 0; });
  std::sort(worth.begin(), worth.end());
  std::vector<LeadingColumn> result;
  for (size_t i = 0; i < std::min(worth.size(), at(table.limits.max_leading_columns)); ++i) {
    result.push_back(make_leading_column(request, table, worth[i].second));
  }
  return result;
}

LeadingColumns choose_leading_columns(PrefixTree& tree, const std::vector<LeadingColumn>& columns,
                                      bool branches_count, Workers& workers) {
  if (columns.empty()) return {{}, tree.saved()};
  return LeadingColumnSearch(tree, columns, branches_count, workers).run();
}

}  // namespace vllm_relational
