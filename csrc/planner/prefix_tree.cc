#include "planner/prefix_tree.h"

#include <algorithm>
#include <numeric>

// The hot loops, also compiled for wider vectors and chosen when the library is loaded: before a sanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

namespace vllm_relational {
namespace {

constexpr int32_t kNone = -1;

size_t at(int32_t index) { return static_cast<size_t>(index); }

// Keeps in `prefix` only the cells that `other` has too. Returns whether anything is left.
void intersect(int32_t* prefix, const int32_t* other, int32_t width) {
  for (int32_t f = 0; f < width; ++f) prefix[f] = prefix[f] == other[f] ? prefix[f] : kNoValue;
}

// Lengths where both have the same value. No branch and no conditional load: the loop becomes vector code.
VECTORISED int32_t sum_where_equal(const int32_t* a, const int32_t* b, const int32_t* lengths, int32_t width) {
  int32_t sum = 0;
  for (int32_t f = 0; f < width; ++f) sum += lengths[f] & -static_cast<int32_t>((a[f] == b[f]) & (a[f] >= 0));
  return sum;
}

// Lengths of shared cells that may not stand in the prefix, as some that they need are not shared.
template <class IsShared>
int64_t unusable_weight(const PlanTable& table, const int32_t* lengths, const IsShared& is_shared) {
  int64_t sum = 0;
  for (const int32_t f : table.needy) {
    const auto& needs = table.needs[at(f)];
    if (is_shared(f) && !std::all_of(needs.begin(), needs.end(), is_shared)) sum += lengths[f];
  }
  return sum;
}

}  // namespace

int64_t prefix_weight(const PlanTable& table, const int32_t* codes, const int32_t* lengths) {
  return shared_weight(table, codes, codes, lengths);
}

int64_t shared_weight(const PlanTable& table, const int32_t* a, const int32_t* b, const int32_t* lengths) {
  const int64_t sum = sum_where_equal(a, b, lengths, table.num_factors);
  return sum - unusable_weight(table, lengths, [&](int32_t f) { return a[f] == b[f] && a[f] >= 0; });
}

bool is_usable(const PlanTable& table, const int32_t* codes, int32_t f) {
  const auto& needs = table.needs[at(f)];
  return std::all_of(needs.begin(), needs.end(), [&](int32_t needed) { return codes[needed] >= 0; });
}

VECTORISED bool contains(const int32_t* codes, const int32_t* prefix, int32_t width) {
  int32_t missing = 0;
  for (int32_t f = 0; f < width; ++f) missing |= (prefix[f] >= 0) & (prefix[f] != codes[f]);
  return missing == 0;
}

PrefixTree::PrefixTree(const PlanTable& table) : table_(&table) {
  const size_t num_rows = at(table.num_rows);
  for (auto* links : {&parent_, &first_child_, &last_child_, &next_, &previous_}) links->assign(num_rows, kNone);
  num_children_.assign(num_rows, 0);
  some_row_.resize(num_rows);
  std::iota(some_row_.begin(), some_row_.end(), 0);
  weight_.resize(num_rows);
  for (int32_t row = 0; row < table.num_rows; ++row) {
    weight_[at(row)] = prefix_weight(table, table.codes_of(row), table.lengths_of(row));
  }
  new_node();
  for (int32_t row = 0; row < table.num_rows; ++row) append_child(root(), row);
  if (table.num_rows > 0) set_prefix_from_children(root());
}

std::vector<int32_t> PrefixTree::children(int32_t node) const {
  std::vector<int32_t> result;
  result.reserve(at(num_children(node)));
  for (int32_t child = first_child(node); child != kNone; child = next_sibling(child)) result.push_back(child);
  return result;
}

int32_t* PrefixTree::inner_codes(int32_t node) {
  return inner_codes_.data() + at(node - table_->num_rows) * at(table_->num_factors);
}

int32_t PrefixTree::new_node() {
  if (!free_.empty()) {
    const int32_t node = free_.back();
    free_.pop_back();
    first_child_[at(node)] = last_child_[at(node)] = kNone;
    num_children_[at(node)] = 0;
    return node;
  }
  const int32_t node = num_nodes();
  for (auto* links : {&parent_, &first_child_, &last_child_, &next_, &previous_, &some_row_}) links->push_back(kNone);
  num_children_.push_back(0);
  weight_.push_back(0);
  inner_codes_.resize(inner_codes_.size() + at(table_->num_factors), kNoValue);
  return node;
}

void PrefixTree::append_child(int32_t parent, int32_t child) {
  parent_[at(child)] = parent;
  previous_[at(child)] = last_child_[at(parent)];
  next_[at(child)] = kNone;
  (last_child_[at(parent)] == kNone ? first_child_[at(parent)] : next_[at(last_child_[at(parent)])]) = child;
  last_child_[at(parent)] = child;
  ++num_children_[at(parent)];
}

void PrefixTree::unlink(int32_t child) {
  const int32_t parent = parent_[at(child)];
  const int32_t before = previous_[at(child)];
  const int32_t after = next_[at(child)];
  (before == kNone ? first_child_[at(parent)] : next_[at(before)]) = after;
  (after == kNone ? last_child_[at(parent)] : previous_[at(after)]) = before;
  --num_children_[at(parent)];
  parent_[at(child)] = kNone;
}

void PrefixTree::dissolve(int32_t node) {
  const int32_t above = parent(node);
  for (const int32_t child : children(node)) {
    unlink(child);
    append_child(above, child);
  }
  unlink(node);
  free_.push_back(node);
}

void PrefixTree::set_prefix_from_children(int32_t node) {
  const int32_t width = table_->num_factors;
  const int32_t first = first_child(node);
  int32_t* prefix = inner_codes(node);
  std::copy_n(codes(first), width, prefix);
  for (int32_t c = next_sibling(first); c != kNone; c = next_sibling(c)) intersect(prefix, codes(c), width);
  some_row_[at(node)] = some_row_[at(first)];
  weight_[at(node)] = prefix_weight(*table_, prefix, lengths(node));
}

int32_t PrefixTree::join(const std::vector<int32_t>& members) {
  const int32_t above = parent(members.front());
  const int32_t node = new_node();
  append_child(above, node);
  for (const int32_t member : members) {
    unlink(member);
    append_child(node, member);
  }
  set_prefix_from_children(node);
  const int32_t width = table_->num_factors;
  for (const int32_t member : members) {
    if (!is_leaf(member) && std::equal(codes(member), codes(member) + width, codes(node))) dissolve(member);
  }
  return node;
}

void PrefixTree::detach(int32_t node) {
  int32_t above = parent(node);
  unlink(node);
  if (above != root() && num_children(above) == 1) {
    const int32_t dissolved = above;
    above = parent(above);
    dissolve(dissolved);
  }
  tighten(above);
}

// Lets the prefix of a node grow to all that its children share, and so on upwards. Nodes with many children stay:
// one child more or less rarely matters there, and looking costs.
void PrefixTree::tighten(int32_t node) {
  while (node != root() && num_children(node) <= table_->limits.many_children) {
    const int64_t before = weight(node);
    set_prefix_from_children(node);
    if (weight(node) == before) return;
    node = parent(node);
  }
}

void PrefixTree::attach(int32_t node, int32_t place) {
  if (!is_leaf(place) && contains(codes(node), codes(place), table_->num_factors)) {
    append_child(place, node);
    return;
  }
  append_child(parent(place), node);
  join({place, node});
}

void PrefixTree::flatten(int32_t node) {
  for (int32_t child = first_child(node); child != kNone;) {
    const int32_t current = child;
    child = next_sibling(current);
    if (is_leaf(current)) continue;
    if (child == kNone) child = first_child(current);  // its children go to the end of the list
    dissolve(current);
  }
}

int64_t PrefixTree::saved() const {
  int64_t sum = 0;
  for (int32_t node = root(); node < num_nodes(); ++node) {  // as they lie in memory
    if (node == root() || parent(node) != kNone) sum += (num_children(node) - 1) * weight(node);
  }
  return std::max<int64_t>(sum, 0);
}

}  // namespace vllm_relational
