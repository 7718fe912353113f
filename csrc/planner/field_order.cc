#include "planner/field_order.h"

#include <algorithm>
#include <numeric>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Rows with equal values in the columns so far, class after class; rows alone in their class are dropped.
struct Classes {
  std::vector<int32_t> rows;
  std::vector<int32_t> starts;  // one per class, and the end
  int64_t saved = 0;            // by the columns so far
};

Classes one_class(int64_t num_rows, int64_t step) {
  Classes all;
  for (int64_t row = 0; row < num_rows; row += step) all.rows.push_back(static_cast<int32_t>(row));
  all.starts = {0, static_cast<int32_t>(all.rows.size())};
  return all;
}

// Splits classes by one more column after the others.
class Refiner {
 public:
  explicit Refiner(const PlanRequest& request) : request_(request) {
    size_t most = 0;
    for (const auto& lengths : request.lengths) most = std::max(most, lengths.size());
    counts_.assign(most, 0);
  }

  Classes refine(const Classes& classes, int32_t column) {
    Classes finer;
    finer.saved = classes.saved;
    finer.starts.push_back(0);
    for (size_t i = 0; i + 1 < classes.starts.size(); ++i) {
      split({classes.rows.data() + classes.starts[i], classes.rows.data() + classes.starts[i + 1]}, column, finer);
    }
    return finer;
  }

 private:
  void split(std::span<const int32_t> rows, int32_t column, Classes& finer) {
    const int32_t* codes = request_.codes.column(column).data();
    const auto& lengths = request_.lengths[at(column)];
    for (const int32_t row : rows) ++counts_[at(codes[row])];
    // A count becomes -(position of the next row) - 1 once its class has a place.
    auto end = static_cast<int32_t>(finer.rows.size());
    for (const int32_t row : rows) {
      int32_t& count = counts_[at(codes[row])];
      if (count < 2) continue;
      finer.saved += (count - 1) * lengths[at(codes[row])];
      const int32_t size = count;
      count = -end - 1;
      end += size;
      finer.starts.push_back(end);
    }
    finer.rows.resize(at(end));
    for (const int32_t row : rows) {
      if (int32_t& count = counts_[at(codes[row])]; count < 0) finer.rows[at(-count-- - 1)] = row;
    }
    for (const int32_t row : rows) counts_[at(codes[row])] = 0;
  }

  const PlanRequest& request_;
  std::vector<int32_t> counts_;
};

// Hill climbing with the classes of every prefix of the current order at hand.
class Climber {
 public:
  Climber(const PlanRequest& request, FieldOrder start, int64_t work, Workers& workers)
      : request_(request), workers_(workers), refiner_(request), order_(std::move(start)), work_(work),
        pinned_(order_.size(), false) {
    for (const int32_t column : request.pinned) pinned_[at(column)] = true;
    for (size_t i = 0; i < order_.size(); ++i) {
      if (!pinned_[i]) movable_.push_back(i);  // a pinned column stands at its own position
    }
    const int64_t step = std::max<int64_t>(1, request.codes.num_rows / request.limits.sampled_rows);
    prefixes_.assign(order_.size() + 1, one_class(request.codes.num_rows, step));
    refresh(0);
  }

  FieldOrder run() {
    bool changed = true;
    while (changed && work_ > 0) {
      changed = false;
      for (size_t i = 0; i < movable_.size() && work_ > 0; ++i) changed |= move_column(i);
    }
    return std::move(order_);
  }

 private:
  int64_t saved() const { return prefixes_.back().saved; }

  // Tries every other place for the i-th movable column and takes the best. Returns whether it moved.
  bool move_column(size_t i) {
    int64_t best = saved();
    size_t best_to = i;
    for (size_t to = 0; to < movable_.size() && work_ > 0; ++to) {
      if (to == i || !request_.precedence.allows(moved(i, to))) continue;
      workers_.check();
      const int64_t there = saved_by(moved(i, to), movable_[std::min(i, to)]);
      if (there > best) best = there, best_to = to;
    }
    if (best_to == i) return false;
    order_ = moved(i, best_to);
    refresh(movable_[std::min(i, best_to)]);
    return true;
  }

  FieldOrder moved(size_t from, size_t to) const {
    FieldOrder result = order_;
    for (size_t i = from; i < to; ++i) std::swap(result[movable_[i]], result[movable_[i + 1]]);
    for (size_t i = from; i > to; --i) std::swap(result[movable_[i]], result[movable_[i - 1]]);
    return result;
  }

  int64_t saved_by(const FieldOrder& order, size_t first_change) {
    Classes classes = prefixes_[first_change];
    for (size_t i = first_change; i < order.size() && !classes.rows.empty(); ++i) {
      work_ -= static_cast<int64_t>(classes.rows.size());
      classes = refiner_.refine(classes, order[i]);
    }
    return classes.saved;
  }

  void refresh(size_t first_change) {
    for (size_t i = first_change; i < order_.size(); ++i) prefixes_[i + 1] = refiner_.refine(prefixes_[i], order_[i]);
  }

  const PlanRequest& request_;
  Workers& workers_;
  Refiner refiner_;
  FieldOrder order_;
  int64_t work_;
  std::vector<bool> pinned_;
  std::vector<size_t> movable_;    // positions of columns that may move
  std::vector<Classes> prefixes_;  // [i]: after the first i columns of the order
};

}  // namespace

ColumnScores column_scores(const PlanRequest& request) {
  ColumnScores scores;
  const auto num_rows = static_cast<double>(request.codes.num_rows);
  for (int64_t c = 0; c < request.codes.num_columns; ++c) {
    const auto& lengths = request.lengths[at(c)];
    std::vector<bool> seen(lengths.size(), false);
    double total = 0;
    double cardinality = 0;
    for (const int32_t code : request.codes.column(c)) {
      total += static_cast<double>(lengths[at(code)]);
      cardinality += seen[at(code)] ? 0 : 1;
      seen[at(code)] = true;
    }
    const double average = total / std::max(num_rows, 1.0);
    cardinality = std::max(cardinality, 1.0);
    scores.fixed.push_back(average / cardinality);
    scores.fixed_v2.push_back(average * average * (num_rows / cardinality - 1));
  }
  return scores;
}

FieldOrder order_by_score(const std::vector<double>& scores, const std::vector<int32_t>& pinned) {
  std::vector<bool> fixed(scores.size(), false);
  for (const int32_t column : pinned) fixed[at(column)] = true;
  FieldOrder ranked;
  for (size_t c = 0; c < scores.size(); ++c) {
    if (!fixed[c]) ranked.push_back(static_cast<int32_t>(c));
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return scores[at(a)] > scores[at(b)]; });
  FieldOrder order;
  auto next = ranked.begin();
  for (size_t c = 0; c < scores.size(); ++c) order.push_back(fixed[c] ? static_cast<int32_t>(c) : *next++);
  return order;
}

int64_t saved_by_order(const PlanRequest& request, std::span<const int32_t> order) {
  Refiner refiner(request);
  Classes classes = one_class(request.codes.num_rows, 1);
  for (size_t i = 0; i < order.size() && !classes.rows.empty(); ++i) classes = refiner.refine(classes, order[i]);
  return classes.saved;
}

FieldOrder climb(const PlanRequest& request, FieldOrder start, int64_t work, Workers& workers) {
  if (request.codes.num_rows < 2 || start.size() < 2) return start;
  return Climber(request, std::move(start), work, workers).run();
}

}  // namespace vllm_relational
