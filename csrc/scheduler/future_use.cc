#include "scheduler/future_use.h"

namespace vllm_relational {

void FutureUse::add(uint32_t request, std::span<const uint64_t> keys, bool front) {
  if (request >= requests_.size()) requests_.resize(request + 1);
  const int64_t place = front ? --first_place_ : next_place_++;
  std::vector<uint32_t>& links = requests_[request];
  links.reserve(keys.size());
  for (const uint64_t key : keys) blocks_.prefetch(key);
  for (const uint64_t key : keys) {
    uint32_t& found = blocks_.insert(key);
    if (found == kNone) found = new_entry(key);
    const uint32_t link = new_link(found, place);
    links.push_back(link);
    front ? push_front(link) : push_back(link);
  }
}

void FutureUse::remove(uint32_t request) {
  const std::vector<uint32_t>& links = requests_[request];
  for (const uint32_t link : links) __builtin_prefetch(&entries_[links_[link].entry]);
  for (const uint32_t link : links) blocks_.prefetch(entries_[links_[link].entry].key);
  for (const uint32_t link : links) {
    unlink(link);
    free_links_.push_back(link);
  }
  requests_[request] = {};
}

uint32_t FutureUse::new_entry(uint64_t key) {
  uint32_t entry;
  if (free_entries_.empty()) {
    entry = static_cast<uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    entry = free_entries_.back();
    free_entries_.pop_back();
  }
  entries_[entry] = {key, kNone, kNone, 0, kNone};
  return entry;
}

uint32_t FutureUse::new_link(uint32_t entry, int64_t place) {
  uint32_t link;
  if (free_links_.empty()) {
    link = static_cast<uint32_t>(links_.size());
    links_.emplace_back();
  } else {
    link = free_links_.back();
    free_links_.pop_back();
  }
  links_[link] = {place, entry, kNone, kNone};
  return link;
}

void FutureUse::push_back(uint32_t link) {
  Entry& entry = entries_[links_[link].entry];
  links_[link].before = entry.last;
  (entry.last == kNone ? entry.first : links_[entry.last].after) = link;
  entry.last = link;
  ++entry.count;
}

void FutureUse::push_front(uint32_t link) {
  Entry& entry = entries_[links_[link].entry];
  links_[link].after = entry.first;
  (entry.first == kNone ? entry.last : links_[entry.first].before) = link;
  entry.first = link;
  ++entry.count;
  tell(entry.mark, links_[link].place);
}

void FutureUse::unlink(uint32_t link) {
  const auto [place, number, before, after] = links_[link];
  Entry& entry = entries_[number];
  (before == kNone ? entry.first : links_[before].after) = after;
  (after == kNone ? entry.last : links_[after].before) = before;
  if (--entry.count == 0) {
    const uint32_t mark = entry.mark;
    blocks_.erase(entry.key);
    free_entries_.push_back(number);
    tell(mark, kNever);
  } else if (before == kNone) {
    tell(entry.mark, links_[after].place);
  }
}

}  // namespace vllm_relational
