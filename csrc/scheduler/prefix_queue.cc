#include "scheduler/prefix_queue.h"

#include <algorithm>
#include <utility>

namespace vllm_relational {

PrefixQueue::PrefixQueue() : nodes_(1), last_(std::make_shared<std::vector<uint64_t>>()) { nodes_[0].keys = last_; }

size_t PrefixQueue::shared_depth(std::span<const uint64_t> keys) const {
  const auto [node, next] = walk(keys);
  return next == kNone ? nodes_[node].depth : parting(node, next, keys);
}

void PrefixQueue::add(uint32_t request, std::span<const uint64_t> keys, bool front) {
  const uint32_t number = place(std::make_shared<const std::vector<uint64_t>>(keys.begin(), keys.end()), front);
  Node& node = nodes_[number];
  if (request >= requests_.size()) requests_.resize(request + 1);
  const uint32_t before = front ? kNone : node.last_request;
  const uint32_t after = front ? node.first_request : kNone;
  requests_[request] = {number, before, after};
  (before == kNone ? node.first_request : requests_[before].after) = request;
  (after == kNone ? node.last_request : requests_[after].before) = request;
  all_sought_ = false;
  ++size_;
}

void PrefixQueue::remove(uint32_t request) { leave(request); }

void PrefixQueue::take(uint32_t request) {
  at_ = requests_[request].node;
  last_ = nodes_[at_].keys;
  last_depth_ = nodes_[at_].depth;
  leave(request);
}

// Parting from it on the edge, the child's requests still share more than all others.
void PrefixQueue::seek(std::span<const uint64_t> keys) {
  const auto [node, next] = walk(keys);
  at_ = next == kNone ? node : next;
  if (keys.data() != last_->data()) last_ = std::make_shared<const std::vector<uint64_t>>(keys.begin(), keys.end());
  last_depth_ = keys.size();
  all_sought_ = true;
}

uint32_t PrefixQueue::first() {
  if (!all_sought_) seek(std::span(*last_).first(last_depth_));
  uint32_t node = at_;
  while (is_empty(node)) node = nodes_[node].parent;
  while (nodes_[node].first_request == kNone) node = nodes_[node].first_child;
  return nodes_[node].first_request;
}

std::vector<uint32_t> PrefixQueue::all() const {
  std::vector<uint32_t> found;
  std::vector<uint32_t> stack{0};
  while (!stack.empty()) {
    const Node& node = nodes_[stack.back()];
    stack.pop_back();
    for (uint32_t r = node.first_request; r != kNone; r = requests_[r].after) found.push_back(r);
    for (uint32_t c = node.last_child; c != kNone; c = nodes_[c].before) stack.push_back(c);
  }
  return found;
}

std::pair<uint32_t, uint32_t> PrefixQueue::walk(std::span<const uint64_t> keys) const {
  uint32_t node = 0;
  uint32_t next = child(node, keys);
  while (next != kNone && is_prefix(next, keys)) {
    node = next;
    next = child(node, keys);
  }
  return {node, next};
}

// The node below on the way of `keys`, which may part from it on the edge.
uint32_t PrefixQueue::child(uint32_t node, std::span<const uint64_t> keys) const {
  const size_t depth = nodes_[node].depth;
  if (nodes_[node].first_child == kNone || keys.size() == depth) return kNone;
  const uint32_t found = children_.find(keys[depth]);
  return found != kNone && nodes_[found].parent == node ? found : kNone;  // another parent: two keys that collide
}

bool PrefixQueue::is_prefix(uint32_t node, std::span<const uint64_t> keys) const {
  const size_t depth = nodes_[node].depth;
  return keys.size() >= depth && keys[depth - 1] == (*nodes_[node].keys)[depth - 1];
}

// The node of exactly these keys.
uint32_t PrefixQueue::place(const Keys& keys, bool front) {
  auto [node, next] = walk(*keys);
  if (next != kNone) node = split(node, next, *keys);
  if (nodes_[node].depth == keys->size()) return node;
  const uint32_t leaf = new_node(node, keys, keys->size());
  add_child(node, leaf, front);
  return leaf;
}

uint32_t PrefixQueue::new_node(uint32_t parent, Keys keys, size_t depth) {
  uint32_t node;
  if (free_nodes_.empty()) {
    node = static_cast<uint32_t>(nodes_.size());
    nodes_.emplace_back();
  } else {
    node = free_nodes_.back();
    free_nodes_.pop_back();
  }
  nodes_[node] = {};
  nodes_[node].keys = std::move(keys);
  nodes_[node].depth = static_cast<uint32_t>(depth);
  nodes_[node].parent = parent;
  return node;
}

void PrefixQueue::add_child(uint32_t parent, uint32_t node, bool front) {
  Node& above = nodes_[parent];
  const uint32_t before = front ? kNone : above.last_child;
  const uint32_t after = front ? above.first_child : kNone;
  nodes_[node].before = before;
  nodes_[node].after = after;
  (before == kNone ? above.first_child : nodes_[before].after) = node;
  (after == kNone ? above.last_child : nodes_[after].before) = node;
  children_.insert((*nodes_[node].keys)[above.depth]) = node;
}

// The depth on the edge from parent to child at which `keys` part from it.
size_t PrefixQueue::parting(uint32_t parent, uint32_t child, std::span<const uint64_t> keys) const {
  const std::vector<uint64_t>& edge = *nodes_[child].keys;
  size_t depth = nodes_[parent].depth + 1;
  while (depth < keys.size() && depth < nodes_[child].depth && keys[depth] == edge[depth]) ++depth;
  return depth;
}

// A new node on the edge from parent to child, where `keys` part from it; it takes the child's place.
uint32_t PrefixQueue::split(uint32_t parent, uint32_t child, std::span<const uint64_t> keys) {
  const size_t depth = parting(parent, child, keys);
  const uint32_t middle = new_node(parent, nodes_[child].keys, depth);
  const uint32_t before = std::exchange(nodes_[child].before, kNone);
  const uint32_t after = std::exchange(nodes_[child].after, kNone);
  nodes_[middle].before = before;
  nodes_[middle].after = after;
  (before == kNone ? nodes_[parent].first_child : nodes_[before].after) = middle;
  (after == kNone ? nodes_[parent].last_child : nodes_[after].before) = middle;
  children_.insert((*nodes_[middle].keys)[nodes_[parent].depth]) = middle;
  nodes_[child].parent = middle;
  add_child(middle, child, false);
  return middle;
}

void PrefixQueue::leave(uint32_t request) {
  const auto [end, before, after] = requests_[request];
  (before == kNone ? nodes_[end].first_request : requests_[before].after) = after;
  (after == kNone ? nodes_[end].last_request : requests_[after].before) = before;
  requests_[request] = {};
  --size_;
  for (uint32_t node = end; node != 0 && is_empty(node);) {
    const uint32_t above = nodes_[node].parent;
    if (at_ == node) at_ = above;
    drop(node);
    node = above;
  }
}

void PrefixQueue::drop(uint32_t node) {
  const auto [keys, depth, parent, before, after, c1, c2, r1, r2] = nodes_[node];
  (before == kNone ? nodes_[parent].first_child : nodes_[before].after) = after;
  (after == kNone ? nodes_[parent].last_child : nodes_[after].before) = before;
  const uint64_t key = (*keys)[nodes_[parent].depth];
  if (children_.find(key) == node) children_.erase(key);
  nodes_[node].keys.reset();
  free_nodes_.push_back(node);
}

}  // namespace vllm_relational
