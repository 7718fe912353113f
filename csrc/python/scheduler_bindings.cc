// The parts of the scheduler for Python: they are called for every request, so they read vLLM's objects themselves,
// many blocks a call, and keep the GIL.
#include <nanobind/nanobind.h>
#include <structmember.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/free_queue.h"
#include "scheduler/future_use.h"
#include "scheduler/partial_index.h"
#include "scheduler/prefix_queue.h"

namespace nb = nanobind;
namespace vr = vllm_relational;

namespace {

constexpr Py_ssize_t kGroupBytes = 4;  // what vLLM appends to the hash of a block: the number of its KV cache group

[[noreturn]] void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw nb::python_error();
}

// ------------------------------------------------------------------------------------------------------ block hashes
// Digests are as good as random: any 8 bytes will do. Shorter names, as tests have them, are mixed (FNV-1a).
uint64_t key_of(const char* bytes, Py_ssize_t size) {
  uint64_t key = 0xcbf29ce484222325U;
  if (size >= 16) {
    std::memcpy(&key, bytes, sizeof key);
    return key;
  }
  for (Py_ssize_t i = 0; i < size; ++i) key = (key ^ static_cast<unsigned char>(bytes[i])) * 0x100000001b3U;
  return key;
}

uint64_t key_of(nb::handle hash) {
  if (!PyBytes_Check(hash.ptr())) raise(PyExc_TypeError, "a block hash must be bytes");
  return key_of(PyBytes_AS_STRING(hash.ptr()), PyBytes_GET_SIZE(hash.ptr()));
}

// A list or tuple of any kind, without copying one.
class Items {
 public:
  explicit Items(nb::handle sequence) : fast_(nb::steal(PySequence_Fast(sequence.ptr(), "a sequence is needed"))) {
    if (!fast_.is_valid()) throw nb::python_error();
  }
  size_t size() const { return static_cast<size_t>(PySequence_Fast_GET_SIZE(fast_.ptr())); }
  nb::handle operator[](size_t i) const { return PySequence_Fast_ITEMS(fast_.ptr())[i]; }

  // The objects lie scattered in memory, and nobody has read them of late: fetch them all at once.
  void prefetch(size_t begin, size_t end) const {
    PyObject** const items = PySequence_Fast_ITEMS(fast_.ptr());
    for (size_t i = begin; i < end; ++i) __builtin_prefetch(items[i]);
  }

 private:
  nb::object fast_;
};

std::vector<uint64_t>& keys_of(nb::handle hashes) {
  static std::vector<uint64_t> keys;  // guarded by the GIL; spares an allocation a request
  const Items items(hashes);
  items.prefetch(0, items.size());
  keys.clear();
  for (size_t i = 0; i < items.size(); ++i) keys.push_back(key_of(items[i]));
  return keys;
}

// --------------------------------------------------------------------------------------------------------- KVCacheBlock
nb::object attribute(nb::handle object, PyObject* name) {
  nb::object value = nb::steal(PyObject_GetAttr(object.ptr(), name));
  if (!value.is_valid()) throw nb::python_error();
  return value;
}

// One of vLLM's attributes. Where the class keeps it in a slot, as vLLM 0.32.0 does for blocks, it is read there: three
// times as fast, and this happens for every block of every request.
class Attribute {
 public:
  explicit Attribute(const char* name) : name_(PyUnicode_InternFromString(name)) {}

  nb::object of(nb::handle object) {
    PyTypeObject* const type = Py_TYPE(object.ptr());
    if (type != type_) look_at(type);
    if (offset_ > 0) {
      PyObject* const value = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object.ptr()) + offset_);
      if (value != nullptr) return nb::borrow(value);
    }
    return attribute(object, name_);
  }

 private:
  void look_at(PyTypeObject* type) {
    const nb::object found = nb::steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_));
    if (!found.is_valid()) PyErr_Clear();
    const bool is_slot = found.is_valid() && Py_IS_TYPE(found.ptr(), &PyMemberDescr_Type);
    const PyMemberDef* const member = is_slot ? reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member : nullptr;
    offset_ = member != nullptr && member->type == T_OBJECT_EX ? member->offset : 0;
    Py_INCREF(type);  // for good: a type at the same address must be the same type
    type_ = type;
  }

  PyObject* name_;
  PyTypeObject* type_ = nullptr;
  Py_ssize_t offset_ = 0;  // 0: not in a slot
};

Attribute& block_id() {
  static Attribute found("block_id");
  return found;
}

Attribute& block_hash() {
  static Attribute found("_block_hash");
  return found;
}

PyObject* hash_map() {
  static PyObject* const name = PyUnicode_InternFromString("cached_block_hash_to_block");
  return name;
}

// A token id; most fit into one digit, as Python calls it.
int32_t token_of(PyObject* number) {
#if PY_VERSION_HEX >= 0x030c0000
  if (PyLong_CheckExact(number) && PyUnstable_Long_IsCompact(reinterpret_cast<PyLongObject*>(number))) {
    return static_cast<int32_t>(PyUnstable_Long_CompactValue(reinterpret_cast<PyLongObject*>(number)));
  }
#elif PY_VERSION_HEX >= 0x030b0000
  if (PyLong_CheckExact(number) && Py_SIZE(number) == 1) {
    return static_cast<int32_t>(reinterpret_cast<PyLongObject*>(number)->ob_digit[0]);
  }
#endif
  return static_cast<int32_t>(PyLong_AsLong(number));
}

// The blocks of a pool, by number.
class Blocks {
 public:
  explicit Blocks(nb::object blocks) : blocks_(nb::cast<nb::list>(blocks)) {}
  size_t size() const { return static_cast<size_t>(PyList_GET_SIZE(blocks_.ptr())); }
  nb::handle operator[](uint32_t id) const { return PyList_GET_ITEM(blocks_.ptr(), id); }

  uint32_t id_of(nb::handle block) const {
    const size_t id = PyLong_AsSize_t(block_id().of(block).ptr());
    if (id >= size()) {
      PyErr_Clear();
      raise(PyExc_ValueError, "block " + std::to_string(id) + " is not of this pool");
    }
    return static_cast<uint32_t>(id);
  }

  nb::handle list() const { return blocks_; }

 private:
  nb::list blocks_;
};

// ---------------------------------------------------------------------------------------------------------- requests
// Names of requests and the numbers that stand for them in the library.
class Requests {
 public:
  size_t size() const { return static_cast<size_t>(PyDict_Size(numbers_.ptr())); }
  nb::handle name(uint32_t number) const { return names_[number]; }

  uint32_t find(nb::handle name) const {
    PyObject* number = PyDict_GetItemWithError(numbers_.ptr(), name.ptr());
    if (number == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
    return number == nullptr ? vr::kNone : static_cast<uint32_t>(PyLong_AsLong(number));
  }

  uint32_t add(nb::handle name) {
    uint32_t number;
    if (free_.empty()) {
      number = static_cast<uint32_t>(names_.size());
      names_.emplace_back();
    } else {
      number = free_.back();
      free_.pop_back();
    }
    names_[number] = nb::borrow(name);
    numbers_[name] = number;
    return number;
  }

  // Takes a request out; kNone if it is not there.
  uint32_t remove(nb::handle name) {
    const uint32_t number = find(name);
    if (number == vr::kNone) return number;
    if (PyDict_DelItem(numbers_.ptr(), name.ptr()) != 0) throw nb::python_error();
    names_[number] = nb::object();
    free_.push_back(number);
    return number;
  }

 private:
  nb::dict numbers_;
  std::vector<nb::object> names_;
  std::vector<uint32_t> free_;
};

// An index of the library over waiting requests, by their names and the hashes of their blocks.
template <class Index>
class WaitingRequests {
 public:
  Index index;

  size_t size() const { return requests_.size(); }

  void add(nb::handle request, nb::handle hashes, bool front) {
    const std::vector<uint64_t>& keys = keys_of(hashes);
    remove(request);
    index.add(requests_.add(request), keys, front);
  }

  bool remove(nb::handle request) {
    const uint32_t number = requests_.remove(request);
    if (number != vr::kNone) index.remove(number);
    return number != vr::kNone;
  }

 protected:
  Requests requests_;
};

// --------------------------------------------------------------------------------------------------------- FutureUse
class FutureUse : public WaitingRequests<vr::FutureUse> {
 public:
  nb::object next_use(nb::handle hash) const {
    const int64_t place = index.next_use(key_of(hash));
    return place == vr::FutureUse::kNever ? nb::steal(PyFloat_FromDouble(Py_HUGE_VAL)) : nb::int_(place);
  }
};

// --------------------------------------------------------------------------------------------------------- FreeQueue
class FreeQueue {
 public:
  // future: a FutureUse for `batch`, None for `fifo`.
  FreeQueue(nb::object pool, nb::object future)
      : pool_(pool), future_(future), blocks_(pool.attr("blocks")),
        hash_map_(attribute(pool, hash_map())),
        queue_(blocks_.size(), ids_of(pool.attr("free_block_queue").attr("get_all_free_blocks")()),
               future.is_none() ? nullptr : &nb::cast<FutureUse&>(future).index) {}

  size_t size() const { return queue_.size(); }

  nb::object take(size_t n) {
    if (n > queue_.size()) raise(PyExc_AssertionError, "fewer blocks are free than are asked for");
    if (!attribute(pool_, hash_map()).is(hash_map_)) after_reset();
    ids_.clear();
    queue_.take(n, [this](uint32_t id) { return !block_hash().of(blocks_[id]).is_none(); }, ids_);
    return to_list(ids_);
  }

  void remove(nb::handle block) {
    const uint32_t id = blocks_.id_of(block);
    if (!queue_.is_free(id)) refuse("remove", block);
    queue_.remove(id);
  }

  void prepend(nb::handle blocks) {
    ids_ = ids_of(blocks);
    const Items items(blocks);
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (queue_.is_free(ids_[i])) refuse("prepend_n", items[i]);
    }
    queue_.prepend(ids_);
  }

  void append(nb::handle blocks) {
    const Items items(blocks);
    freed_.clear();
    for (size_t i = 0; i < items.size(); ++i) {
      freed_.push_back(freed(items[i]));
      if (queue_.is_free(freed_.back().id)) refuse("append_n", items[i]);
    }
    queue_.append(freed_);
  }

  nb::object all() const { return to_list(queue_.all()); }

  nb::object evictions() const {
    nb::dict counts;
    counts["unhashed"] = queue_.evictions()[vr::FreeQueue::kUnhashed];
    counts["no_future_use"] = queue_.evictions()[vr::FreeQueue::kIdle];
    counts[future_.is_none() ? "cached" : "future_use"] = queue_.evictions()[vr::FreeQueue::kRanked];
    return counts;
  }


  // The queue hangs from the pool and holds it: Python's collector must see that.
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(pool_.ptr());
    Py_VISIT(future_.ptr());
    Py_VISIT(blocks_.list().ptr());
    Py_VISIT(hash_map_.ptr());
    return 0;
  }

 private:
  std::vector<uint32_t> ids_of(nb::handle blocks) const {
    const Items items(blocks);
    std::vector<uint32_t> ids(items.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = blocks_.id_of(items[i]);
    return ids;
  }

  nb::object to_list(const std::vector<uint32_t>& ids) const {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(ids.size())));
    if (!list.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < ids.size(); ++i) {
      PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), blocks_[ids[i]].inc_ref().ptr());
    }
    return list;
  }

  vr::FreedBlock freed(nb::handle block) const {
    const uint32_t id = blocks_.id_of(block);
    const nb::object hash = block_hash().of(block);
    if (hash.is_none()) return {id, false, 0};
    if (!PyBytes_Check(hash.ptr())) raise(PyExc_TypeError, "a block hash must be bytes");
    return {id, true, key_of(PyBytes_AS_STRING(hash.ptr()), PyBytes_GET_SIZE(hash.ptr()) - kGroupBytes)};
  }

  [[noreturn]] static void refuse(const char* method, nb::handle block) {
    raise(PyExc_RuntimeError, std::string(method) + "() called on an invalid block: " + nb::repr(block).c_str());
  }

  // reset_prefix_cache took all hashes without a word: blocks without one come first again.
  void after_reset() {
    std::vector<uint32_t> unhashed;
    std::vector<vr::FreedBlock> cached;
    for (const uint32_t id : queue_.all()) {
      const vr::FreedBlock block = freed(blocks_[id]);
      queue_.remove(id);
      block.has_hash ? cached.push_back(block) : unhashed.push_back(id);
    }
    queue_.prepend(unhashed);
    queue_.append(cached);
    hash_map_ = attribute(pool_, hash_map());
  }

  nb::object pool_;
  nb::object future_;
  Blocks blocks_;
  nb::object hash_map_;
  vr::FreeQueue queue_;
  std::vector<uint32_t> ids_;  // scratch
  std::vector<vr::FreedBlock> freed_;
};

// ------------------------------------------------------------------------------------------------------- PrefixQueue
class PrefixQueue : public WaitingRequests<vr::PrefixQueue> {
 public:
  void take(nb::handle request) {
    const uint32_t number = requests_.remove(request);
    if (number == vr::kNone) raise(PyExc_KeyError, std::string(nb::repr(request).c_str()));
    index.take(number);
  }

  size_t shared_depth(nb::handle hashes) const { return index.shared_depth(keys_of(hashes)); }

  void seek(nb::handle hashes) { index.seek(keys_of(hashes)); }

  nb::object first() {
    if (requests_.size() == 0) raise(PyExc_IndexError, "no request waits");
    return nb::borrow(requests_.name(index.first()));
  }

  nb::object iterate() const {
    nb::list found;
    for (const uint32_t number : index.all()) found.append(requests_.name(number));
    return nb::iter(found);
  }
};

// ---------------------------------------------------------------------------------------------------- PartialSources
class PartialSources {
 public:
  PartialSources(nb::object blocks, size_t block_size)
      : blocks_(blocks), block_size_(block_size), index_(blocks_.size(), block_size), hashes_(blocks_.size()) {}

  size_t size() const { return index_.size(); }

  void enter(nb::handle cached, size_t first, nb::handle hashes, nb::handle prefixes, nb::handle tokens) {
    const Items blocks(cached), own(hashes), before(prefixes), all(tokens);
    const size_t num_blocks = blocks.size(), end = first + num_blocks;
    if (end > own.size() || before.size() != num_blocks || end * block_size_ > all.size()) {
      raise(PyExc_ValueError, "a request has fewer hashes, prefixes or tokens than blocks");
    }
    before.prefetch(0, num_blocks);
    all.prefetch(first * block_size_, end * block_size_);
    for (size_t i = first; i < end; ++i) {
      const nb::object hash = block_hash().of(blocks[i - first]);
      if (!begins_with(hash, own[i])) continue;  // evicted since, or given to another request
      const uint32_t id = blocks_.id_of(blocks[i - first]);
      read(all, i * block_size_, (i + 1) * block_size_);
      index_.add(prefix_of(before[i - first]), tokens_, id);
      hashes_[id] = hash;
    }
  }

  nb::object longest(nb::handle prefix, nb::handle tokens, size_t start, size_t end) {
    const Items all(tokens);
    if (start > end || end > all.size() || end - start > block_size_) raise(PyExc_ValueError, "at most a block of tokens");
    read(all, start, end);
    const vr::PrefixHash key = prefix_of(prefix);
    for (;;) {
      const auto [id, shared] = index_.longest(key, tokens_);
      if (shared == 0) return nb::make_tuple(-1, 0);
      if (block_hash().of(blocks_[id]).is(hashes_[id])) return nb::make_tuple(id, shared);
      index_.remove(id);
      hashes_[id] = nb::object();
    }
  }

  void clear() {
    index_.clear();
    hashes_.assign(hashes_.size(), nb::object());
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(blocks_.list().ptr());
    return 0;
  }

 private:
  static bool begins_with(nb::handle hash, nb::handle own) {
    if (hash.is_none() || !PyBytes_Check(own.ptr())) return false;
    const auto size = PyBytes_GET_SIZE(own.ptr());
    return PyBytes_GET_SIZE(hash.ptr()) == size + kGroupBytes &&
           std::memcmp(PyBytes_AS_STRING(hash.ptr()), PyBytes_AS_STRING(own.ptr()), static_cast<size_t>(size)) == 0;
  }

  static vr::PrefixHash prefix_of(nb::handle hash) {
    vr::PrefixHash prefix{};
    if (!PyBytes_Check(hash.ptr()) || PyBytes_GET_SIZE(hash.ptr()) > static_cast<Py_ssize_t>(sizeof prefix)) {
      raise(PyExc_ValueError, "a prefix must be at most 32 bytes");
    }
    std::memcpy(prefix.data(), PyBytes_AS_STRING(hash.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(hash.ptr())));
    return prefix;
  }

  void read(const Items& tokens, size_t start, size_t end) {
    tokens_.resize(end - start);
    for (size_t i = start; i < end; ++i) tokens_[i - start] = token_of(tokens[i].ptr());
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
  }

  Blocks blocks_;
  size_t block_size_;
  vr::PartialIndex index_;
  std::vector<nb::object> hashes_;  // by block: made anew whenever a block is cached, so the same object is the same time
  std::vector<int32_t> tokens_;     // scratch
};

template <class T>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  return nb::inst_ptr<T>(self)->traverse(visit, arg);
}

template <class T>
PyType_Slot* collected() {
  static PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(traverse<T>)}, {0, nullptr}};
  return slots;
}

template <class Waiting>
nb::class_<Waiting> bind_waiting_requests(nb::module_& m, const char* name, const char* doc) {
  return nb::class_<Waiting>(m, name, doc)
      .def(nb::init<>())
      .def("__len__", &Waiting::size)
      .def("add", &Waiting::add, nb::arg("request"), nb::arg("hashes"), nb::arg("front") = false)
      .def("remove", &Waiting::remove, nb::arg("request"));
}

}  // namespace

void bind_scheduler_parts(nb::module_& m) {
  bind_waiting_requests<FutureUse>(m, "FutureUse", "kv/future_use.py; block hashes are bytes.")
      .def("next_use", &FutureUse::next_use, nb::arg("block"))
      .def("count", [](const FutureUse& self, nb::handle hash) { return self.index.count(key_of(hash)); })
      .def_prop_ro("num_blocks", [](const FutureUse& self) { return self.index.num_blocks(); });
  nb::class_<FreeQueue>(m, "FreeQueue", nb::type_slots(collected<FreeQueue>()), "vllm_ext/scheduler/free_queue.py.")
      .def(nb::init<nb::object, nb::object>(), nb::arg("pool"), nb::arg("future").none())
      .def_prop_ro("num_free_blocks", &FreeQueue::size)
      .def_prop_ro("evictions", &FreeQueue::evictions)
      .def("popleft_n", &FreeQueue::take, nb::arg("n"))
      .def("remove", &FreeQueue::remove, nb::arg("block"))
      .def("prepend_n", &FreeQueue::prepend, nb::arg("blocks"))
      .def("append_n", &FreeQueue::append, nb::arg("blocks"))
      .def("get_all_free_blocks", &FreeQueue::all);
  bind_waiting_requests<PrefixQueue>(m, "PrefixQueue", "kv/prefix_queue.py; block hashes are bytes.")
      .def("__iter__", &PrefixQueue::iterate)
      .def("shared_depth", &PrefixQueue::shared_depth, nb::arg("hashes"))
      .def("take", &PrefixQueue::take, nb::arg("request"))
      .def("seek", &PrefixQueue::seek, nb::arg("hashes"))
      .def("first", &PrefixQueue::first);
  nb::class_<PartialSources>(m, "PartialSources", nb::type_slots(collected<PartialSources>()),
                             "vllm_ext/scheduler/partial_sources.py.")
      .def(nb::init<nb::object, size_t>(), nb::arg("blocks"), nb::arg("block_size"))
      .def("__len__", &PartialSources::size)
      .def("enter", &PartialSources::enter, nb::arg("cached"), nb::arg("first"), nb::arg("hashes"), nb::arg("prefixes"),
           nb::arg("tokens"))
      .def("longest", &PartialSources::longest, nb::arg("prefix"), nb::arg("tokens"), nb::arg("start"), nb::arg("end"))
      .def("clear", &PartialSources::clear);
}
