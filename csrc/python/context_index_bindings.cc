// Indexes of keys for Python. An index holds on to the arrays that it was made of, memory-mapped ones too; they are
// checked once, when it is made, so that no search reads what is not theirs.
#include "context/clusters.h"
#include "context/codes.h"
#include "context/graph.h"
#include "python/context_arguments.h"

using namespace context_arguments;

namespace {

// What every search of an index is asked.
struct Asked {
  Asked(const vc::Rows& rows, const Array& queries, int64_t start, int64_t stop, const std::string& level)
      : heads(queries_of(queries, rows.head_size)), simd(vc::level_named(level)) {
    check_range(start, stop, rows.count);
  }

  vc::QueryHeads heads;
  vc::SimdLevel simd;
};

template <class Search>
nb::tuple released(Search search) {
  vc::Hits hits;
  {
    const nb::gil_scoped_release release;
    hits = search();
  }
  return to_python(std::move(hits));
}

void check_k(int64_t k) {
  if (k < 0) fail("k must be 0 or greater, not " + std::to_string(k));
}

template <class T>
const T* sized(const Array& array, const std::string& name, std::vector<size_t> shape) {
  const T* data = elements<T>(array, name, shape.size());
  for (size_t d = 0; d < shape.size(); ++d) {
    if (array.shape(d) != shape[d]) fail(name + " do not belong to these keys: another size");
  }
  return data;
}

// ------------------------------------------------------------------------------------------------------------- codes
class Codes {
 public:
  Codes(Array keys, Array zeros, Array scales, Array words)
      : keys_(std::move(keys)), zeros_(std::move(zeros)), scales_(std::move(scales)), words_(std::move(words)),
        rows_(rows_of(keys_, "keys")) {
    const auto groups = static_cast<size_t>((rows_.count + vc::kGroup - 1) / vc::kGroup);
    const auto size = static_cast<size_t>(rows_.head_size);
    view_ = {sized<uint16_t>(zeros_, "zeros", {groups, size}), sized<uint16_t>(scales_, "scales", {groups, size}),
             sized<uint32_t>(words_, "words", {groups, (size + 7) / 8, static_cast<size_t>(vc::kGroup)})};
  }

  nb::tuple dipr(const Array& queries, float beta, const std::optional<Array>& lower, int64_t start, int64_t stop,
                 const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_beta(beta);
    const float* const least = lower_of(lower, asked.heads.num_heads);
    return released([&] { return vc::codes_dipr(rows_, view_, start, stop, asked.heads, beta, least, asked.simd); });
  }

  nb::tuple topk(const Array& queries, int64_t k, int64_t start, int64_t stop, const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_k(k);
    return released([&] { return vc::codes_topk(rows_, view_, start, stop, asked.heads, k, asked.simd); });
  }

 private:
  Array keys_, zeros_, scales_, words_;
  vc::Rows rows_;
  vc::CodesView view_{};
};

nb::tuple encode(const Array& keys) {
  const vc::Rows rows = rows_of(keys, "keys");
  vc::Codes codes;
  {
    const nb::gil_scoped_release release;
    codes = vc::encode(rows);
  }
  const auto groups = static_cast<size_t>((rows.count + vc::kGroup - 1) / vc::kGroup);
  const auto size = static_cast<size_t>(rows.head_size);
  return nb::make_tuple(to_numpy(std::move(codes.zeros), {groups, size}), to_numpy(std::move(codes.scales), {groups, size}),
                        to_numpy(std::move(codes.words), {groups, (size + 7) / 8, static_cast<size_t>(vc::kGroup)}));
}

// ---------------------------------------------------------------------------------------------------------- clusters
void check_starts(std::span<const int32_t> starts, size_t num_tokens) {
  bool fits = !starts.empty() && starts.front() == 0 && starts.back() == static_cast<int64_t>(num_tokens);
  for (size_t i = 0; fits && i + 1 < starts.size(); ++i) fits = starts[i] < starts[i + 1];
  if (!fits) fail("starts must ascend from 0 to the number of tokens");
}

vc::ClustersView clusters_view(const vc::Rows& rows, const Array& starts, const Array& tokens, const Array& means,
                               const Array& variances, const Array& covariance, const Array& odd) {
  const std::span<const int32_t> listed = tokens_of(tokens, rows.count);
  const std::span<const int32_t> begins{elements<int32_t>(starts, "starts", 1), starts.shape(0)};
  check_starts(begins, listed.size());
  const auto size = static_cast<size_t>(rows.head_size);
  return {begins, listed, tokens_of(odd, rows.count), sized<uint16_t>(means, "means", {begins.size() - 1, size}),
          sized<uint16_t>(variances, "variances", {begins.size() - 1, size}),
          sized<float>(covariance, "covariance", {size, size})};
}

class Clusters {
 public:
  Clusters(Array keys, Array starts, Array tokens, Array means, Array variances, Array covariance, Array odd)
      : held_{std::move(keys), std::move(starts), std::move(tokens), std::move(means), std::move(variances),
              std::move(covariance), std::move(odd)},
        rows_(rows_of(held_[0], "keys")),
        view_(clusters_view(rows_, held_[1], held_[2], held_[3], held_[4], held_[5], held_[6])) {}

  nb::tuple dipr(const Array& queries, float beta, const std::optional<Array>& lower, int64_t start, int64_t stop,
                 float sure, float most, float share, const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_beta(beta);
    const float* const least = lower_of(lower, asked.heads.num_heads);
    return released(
        [&] { return vc::clusters_dipr(rows_, view_, start, stop, asked.heads, beta, least, {sure, most, share}, asked.simd); });
  }

  nb::tuple topk(const Array& queries, int64_t k, int64_t start, int64_t stop, float sure, float most, float share,
                 const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_k(k);
    return released([&] { return vc::clusters_topk(rows_, view_, start, stop, asked.heads, k, {sure, most, share}, asked.simd); });
  }

  nb::tuple products(const Array& queries, const std::string& level) const {
    const Asked asked(rows_, queries, 0, 0, level);
    const auto heads = static_cast<size_t>(asked.heads.num_heads), count = static_cast<size_t>(view_.size());
    std::vector<float> means(heads * count), deviations(heads * count);
    vc::cluster_products(view_, rows_.head_size, asked.heads, asked.simd, means.data(), deviations.data());
    return nb::make_tuple(to_numpy(std::move(means), {heads, count}), to_numpy(std::move(deviations), {heads, count}));
  }

  const vc::ClustersView& view() const { return view_; }

 private:
  std::vector<Array> held_;
  vc::Rows rows_;
  vc::ClustersView view_;
};

nb::tuple build_clusters(const Array& keys, int32_t cluster_size, int32_t segment, int32_t rounds,
                         const std::string& level) {
  const vc::Rows rows = rows_of(keys, "keys");
  if (cluster_size < 1 || segment < cluster_size || rounds < 1) {
    fail("clusters need a size of at least 1, a segment of at least that, and a round");
  }
  const vc::SimdLevel simd = vc::level_named(level);
  vc::ClusterParts parts;
  {
    const nb::gil_scoped_release release;
    parts = vc::build_clusters(rows, {cluster_size, segment, rounds}, simd);
  }
  const size_t count = parts.starts.size() - 1, size = static_cast<size_t>(rows.head_size);
  return nb::make_tuple(to_numpy(std::move(parts.starts)), to_numpy(std::move(parts.tokens)),
                        to_numpy(std::move(parts.means), {count, size}), to_numpy(std::move(parts.variances), {count, size}),
                        to_numpy(std::move(parts.covariance), {size, size}), to_numpy(std::move(parts.odd)));
}

// ------------------------------------------------------------------------------------------------------------- graph
class Graph {
 public:
  Graph(Array keys, Array links, Array entries)
      : keys_(std::move(keys)), links_(std::move(links)), entries_(std::move(entries)), rows_(rows_of(keys_, "keys")) {
    const auto* data = elements<int32_t>(links_, "links", 2);
    if (static_cast<int64_t>(links_.shape(0)) != rows_.count) fail("links do not belong to these keys: another size");
    for (size_t i = 0; i < links_.size(); ++i) {
      if (data[i] < -1 || data[i] >= rows_.count) fail("links name a key that there is not");
    }
    view_ = {data, static_cast<int64_t>(links_.shape(1)), tokens_of(entries_, rows_.count)};
  }

  nb::tuple dipr(const Array& queries, float beta, const std::optional<Array>& lower, int64_t start, int64_t stop,
                 int64_t expansions, const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_beta(beta);
    const float* const least = lower_of(lower, asked.heads.num_heads);
    return released(
        [&] { return vc::graph_dipr(rows_, view_, start, stop, asked.heads, beta, least, expansions, asked.simd); });
  }

  nb::tuple topk(const Array& queries, int64_t k, int64_t start, int64_t stop, int64_t expansions,
                 const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_k(k);
    return released([&] { return vc::graph_topk(rows_, view_, start, stop, asked.heads, k, expansions, asked.simd); });
  }

  nb::tuple diprs(const Array& queries, float beta, const std::optional<Array>& lower, int64_t start, int64_t stop,
                  int64_t list_size, const std::string& level) const {
    const Asked asked(rows_, queries, start, stop, level);
    check_beta(beta);
    const float* const least = lower_of(lower, asked.heads.num_heads);
    return released(
        [&] { return vc::diprs(rows_, view_, start, stop, asked.heads, beta, least, list_size, asked.simd); });
  }

 private:
  Array keys_, links_, entries_;
  vc::Rows rows_;
  vc::GraphView view_{};
};

nb::tuple build_graph(const Array& keys, const Array& lists, const Clusters& clusters, int32_t num_links,
                      const std::string& level) {
  const vc::Rows rows = rows_of(keys, "keys");
  const auto* data = elements<int32_t>(lists, "lists", 2);
  for (size_t i = 0; i < lists.size(); ++i) {
    if (data[i] < -1 || data[i] >= rows.count) fail("lists name a key that there is not");
  }
  if (num_links < 1 || lists.shape(1) < 1) fail("a graph needs at least one link a key, and lists of at least one");
  const vc::SimdLevel simd = vc::level_named(level);
  vc::GraphParts parts;
  {
    const nb::gil_scoped_release release;
    parts = vc::build_graph(rows, {data, lists.size()}, static_cast<int64_t>(lists.shape(1)), clusters.view(), num_links, simd);
  }
  return nb::make_tuple(to_numpy(std::move(parts.links), {static_cast<size_t>(rows.count), static_cast<size_t>(num_links)}),
                        to_numpy(std::move(parts.entries)));
}

}  // namespace

void bind_context_indexes(nb::module_& m) {
  m.def("encode", &encode, nb::arg("keys"), "Keys in 4 bits a channel: (zeros, scales, words).");
  nb::class_<Codes>(m, "Codes", "Keys with their 4-bit codes.")
      .def(nb::init<Array, Array, Array, Array>(), nb::arg("keys"), nb::arg("zeros"), nb::arg("scales"), nb::arg("words"))
      .def("dipr", &Codes::dipr, nb::arg("queries"), nb::arg("beta"), nb::arg("lower").none(), nb::arg("start"), nb::arg("stop"), nb::arg("level"))
      .def("topk", &Codes::topk, nb::arg("queries"), nb::arg("k"), nb::arg("start"), nb::arg("stop"), nb::arg("level"));
  m.def("build_clusters", &build_clusters, nb::arg("keys"), nb::arg("cluster_size"), nb::arg("segment"), nb::arg("rounds"),
        nb::arg("level"), "k-means of keys: (starts, tokens, means, variances, covariance, odd).");
  nb::class_<Clusters>(m, "Clusters", "Keys with their clusters.")
      .def(nb::init<Array, Array, Array, Array, Array, Array, Array>(), nb::arg("keys"), nb::arg("starts"), nb::arg("tokens"),
           nb::arg("means"), nb::arg("variances"), nb::arg("covariance"), nb::arg("odd"))
      .def("products", &Clusters::products, nb::arg("queries"), nb::arg("level"))
      .def("dipr", &Clusters::dipr, nb::arg("queries"), nb::arg("beta"), nb::arg("lower").none(), nb::arg("start"), nb::arg("stop"), nb::arg("sure"), nb::arg("most"), nb::arg("share"), nb::arg("level"))
      .def("topk", &Clusters::topk, nb::arg("queries"), nb::arg("k"), nb::arg("start"), nb::arg("stop"), nb::arg("sure"), nb::arg("most"), nb::arg("share"), nb::arg("level"));
  m.def("build_graph", &build_graph, nb::arg("keys"), nb::arg("lists"), nb::arg("clusters"), nb::arg("num_links"), nb::arg("level"),
        "Links of keys that the same queries want: (links, entries).");
  nb::class_<Graph>(m, "Graph", "Keys with a graph over them.")
      .def(nb::init<Array, Array, Array>(), nb::arg("keys"), nb::arg("links"), nb::arg("entries"))
      .def("dipr", &Graph::dipr, nb::arg("queries"), nb::arg("beta"), nb::arg("lower").none(), nb::arg("start"), nb::arg("stop"), nb::arg("expansions"), nb::arg("level"))
      .def("topk", &Graph::topk, nb::arg("queries"), nb::arg("k"), nb::arg("start"), nb::arg("stop"), nb::arg("expansions"), nb::arg("level"))
      .def("diprs", &Graph::diprs, nb::arg("queries"), nb::arg("beta"), nb::arg("lower").none(), nb::arg("start"), nb::arg("stop"), nb::arg("list_size"), nb::arg("level"));
}
