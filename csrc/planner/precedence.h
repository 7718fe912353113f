// Constraints on the order of the fields inside a row.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace vllm_relational {

using FieldOrder = std::vector<int32_t>;  // every column once

// Which columns must stand before which. Pins at the ends of the row are of this kind: the first column pinned means
// that all others need it. A pin in the middle is not: it fixes how many columns stand before.
class Precedence {
 public:
  // before: pairs (first, second), each with first < second: original order always satisfies them. pinned: columns
  // that keep their original position, ascending.
  Precedence(int64_t num_columns, std::span<const std::pair<int32_t, int32_t>> before, std::span<const int32_t> pinned);

  bool empty() const { return empty_; }
  // Whether a column is pinned that the needs below do not say all about.
  bool has_middle_pins() const { return has_middle_pins_; }

  // The columns that must stand before this one, those that they need included; ascending.
  const std::vector<int32_t>& needs(int32_t column) const { return needs_[static_cast<size_t>(column)]; }

  bool allows(std::span<const int32_t> order) const;

  // Puts a column off until those that it needs stand, and keeps the order otherwise. Rows that agree in their leading
  // fields still agree in as many of them as the needs allow. Pins in the middle may be lost.
  void repair(std::span<int32_t> order) const;

 private:
  std::vector<std::vector<int32_t>> needs_, followers_;
  std::vector<int32_t> middle_pins_;
  bool empty_;
  bool has_middle_pins_;
};

}  // namespace vllm_relational
