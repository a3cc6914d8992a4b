// ctest of the torch-free part: sites and boxes by enumeration; on every instruction set the forward against
// its definition, the backward against finite differences, rows without keys, and what eps leaves out.
#include "toroidal_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/test.h"
#include "toroidal_attention_math.h"

using namespace stratcore;
using namespace stratcore::test;
using namespace stratcore::toroidal_attention;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Metric kMetrics[] = {Metric::kL1, Metric::kL2, Metric::kLinf, Metric::kChordal,
                               Metric::kChordalSquared};

const Lattice kLattices[] = {
    {1, {7, 1, 1}, {7, 1, 1}}, {1, {8, 1, 1}, {2, 1, 1}}, {2, {4, 6, 1}, {4, 6, 1}},
    {2, {4, 6, 1}, {2, 3, 1}}, {2, {6, 4, 1}, {3, 1, 1}}, {3, {4, 2, 6}, {2, 2, 3}},
    {3, {2, 3, 4}, {1, 3, 2}},
};

// ---- sites and boxes

void test_sites() {
  for (const Lattice& lattice : kLattices) {
    std::vector<int> seen(lattice.sites(), 0);
    for (int64_t position = 0; position < lattice.sites(); ++position) {
      const Site site = site_of(lattice, position), next = site_of(lattice, position + 3 * lattice.sites());
      int64_t index = 0;
      for (int axis = 0; axis < kMaxAxes; ++axis) {
        expect(site.at[axis] == next.at[axis], "positions go around");
        expect(0 <= site.at[axis] && site.at[axis] < lattice.period[axis], "a site of the torus", axis);
        index = index * lattice.period[axis] + site.at[axis];
      }
      ++seen[index];
    }
    expect(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }), "every site once");
  }
  // blocks of 2 x 2 in 2 x 4
  const Lattice plane{2, {2, 4, 1}, {2, 2, 1}};
  const int wanted[8][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}};
  for (int64_t t = 0; t < 8; ++t) {
    const Site site = site_of(plane, t);
    expect(site.at[0] == wanted[t][0] && site.at[1] == wanted[t][1], "block order", t);
  }
}

void test_steps() {
  const int32_t seven[] = {0, 1, 2, 3, 3, 2, 1};
  for (int32_t at = 0; at < 7; ++at) {
    expect(ring_steps(0, at, 7) == seven[at] && ring_steps(at, 0, 7) == seven[at], "steps of a ring of 7",
           at);
  }
  expect(std::abs(chord(1.0, 4.0) - std::sqrt(0.5) * 4 / M_PI) < 1e-15, "chord of a quarter");
  expect(std::abs(chord(2.0, 4.0) - 4 / M_PI) < 1e-15, "chord of a half");
}

bool inside(const Box& box, const Lattice& lattice, const Site& site, int axis) {
  const int32_t period = lattice.period[axis];
  return (site.at[axis] - box.start[axis] + period) % period < box.length[axis];
}

// Every site of a run is in its box, and no two sites of two runs are nearer than their boxes.
void test_boxes() {
  for (const Lattice& lattice : kLattices) {
    const int64_t sites = lattice.sites();
    for (int64_t first = 0; first < sites; ++first) {
      for (int64_t count = 1; count <= sites + 1; count += 1 + count / 3) {
        const Box box = box_of(lattice, first, count), other = box_of(lattice, first / 2 + 3, 2);
        int32_t least[kMaxAxes] = {1000, 1000, 1000};
        for (int64_t position = first; position < first + count; ++position) {
          const Site site = site_of(lattice, position);
          for (int axis = 0; axis < lattice.axes; ++axis) {
            expect(inside(box, lattice, site, axis), "a box holds its run", first, count, axis);
            for (int64_t near = first / 2 + 3; near < first / 2 + 5; ++near) {
              const int32_t apart =
                  ring_steps(site.at[axis], site_of(lattice, near).at[axis], lattice.period[axis]);
              least[axis] = std::min(least[axis], apart);
            }
          }
        }
        for (int axis = 0; axis < lattice.axes; ++axis) {
          const int32_t bound = least_steps(box, other, axis, lattice.period[axis]);
          expect(bound <= least[axis], "boxes are not farther than their sites", first, count, axis);
          expect(lattice.axes > 1 || bound == least[axis], "runs of a ring fill their boxes", first, count);
          expect(bound == least_steps(other, box, axis, lattice.period[axis]), "in both orders", first,
                 count);
        }
      }
    }
  }
}

// ---- the op

template <class T>
struct Run {
  int32_t threads = 2;
  Executor executor = host_executor(&threads);
  Problem problem{};
  std::vector<T> q, k, v, slopes, out, lse, grad_out, grad_lse, grad_q, grad_k, grad_v, grad_slopes;
  std::vector<int32_t> tiles;

  Run(const Lattice& lattice, Metric metric, int64_t queries, int64_t keys, int64_t dim,
      int32_t slope_count = 1) {
    const int64_t batch = 2, heads = 4, kv_heads = 2;
    problem.element = sizeof(T) == 8 ? Element::kFloat64 : Element::kFloat32;
    problem.batch = batch;
    problem.heads = heads;
    problem.kv_heads = kv_heads;
    problem.queries = queries;
    problem.keys = keys;
    problem.dim = dim;
    problem.q_strides = {heads * queries * dim, queries * dim, dim};
    problem.k_strides = problem.v_strides = {kv_heads * keys * dim, keys * dim, dim};
    problem.scale = 0.5;
    problem.slope_count = slope_count;
    problem.metric = metric;
    problem.lattice = lattice;
    problem.causal_group = 1;
    q = random_values<T>(batch * heads * queries * dim, 1);
    k = random_values<T>(batch * kv_heads * keys * dim, 2);
    v = random_values<T>(batch * kv_heads * keys * dim, 3);
    slopes = random_values<T>(heads * slope_count, 4);
    for (T& slope : slopes) slope = std::abs(slope);
    grad_out = random_values<T>(q.size(), 5);
    grad_lse = random_values<T>(batch * heads * queries, 6);
    out.resize(q.size());
    lse.resize(grad_lse.size());
    tiles.resize(batch * heads * 2);
    grad_q.resize(q.size());
    grad_k.resize(k.size());
    grad_v.resize(v.size());
    grad_slopes.resize(slopes.size());
  }

  Output output() { return {out.data(), problem.q_strides, lse.data(), tiles.data()}; }

  void forward() {
    problem.q = q.data();
    problem.k = k.data();
    problem.v = v.data();
    problem.slopes = slopes.data();
    std::fill(tiles.begin(), tiles.end(), 0);
    forward_cpu(problem, output(), executor);
  }

  void backward() {
    forward();
    const Gradients gradients{grad_out.data(), problem.q_strides, grad_lse.data(),   grad_q.data(),
                              grad_k.data(),   grad_v.data(),     grad_slopes.data()};
    backward_cpu(problem, output(), gradients, executor);
  }
};

template <class T>
double score(const Run<T>& run, int64_t batch, int64_t head, int64_t query, int64_t key) {
  const Problem& problem = run.problem;
  if (key >= visible_keys(problem, query)) return -kInfinity;
  const T* q = run.q.data() + ((batch * problem.heads + head) * problem.queries + query) * problem.dim;
  const int64_t group = head / (problem.heads / problem.kv_heads);
  const T* k = run.k.data() + ((batch * problem.kv_heads + group) * problem.keys + key) * problem.dim;
  const Site a = site_of(problem.lattice, problem.query_offset + query);
  const Site b = site_of(problem.lattice, problem.key_offset + key);
  double sum = 0, steps[kMaxAxes] = {}, parts[kMaxAxes] = {};
  for (int64_t d = 0; d < problem.dim; ++d) sum += double(q[d]) * double(k[d]);
  for (int axis = 0; axis < kMaxAxes; ++axis)
    steps[axis] = ring_steps(a.at[axis], b.at[axis], problem.lattice.period[axis]);
  distance_parts(problem.metric, problem.lattice, steps, problem.slope_count, parts);
  sum *= problem.scale;
  for (int part = 0; part < problem.slope_count; ++part)
    sum -= double(run.slopes[head * problem.slope_count + part]) * parts[part];
  return sum;
}

// Largest difference of out and lse from their definition; rows without keys must be 0 and -infinity.
template <class T>
double error(const Run<T>& run) {
  const Problem& problem = run.problem;
  double worst = 0;
  for (int64_t row = 0; row < problem.batch * problem.heads * problem.queries; ++row) {
    const int64_t query = row % problem.queries, head = row / problem.queries % problem.heads;
    const int64_t batch = row / problem.queries / problem.heads;
    const int64_t group = batch * problem.kv_heads + head / (problem.heads / problem.kv_heads);
    std::vector<double> wanted(problem.dim, 0.0);
    double total = 0;
    for (int64_t key = 0; key < problem.keys; ++key) {
      const double weight = std::exp(score(run, batch, head, query, key));
      total += weight;
      const T* v = run.v.data() + (group * problem.keys + key) * problem.dim;
      for (int64_t d = 0; d < problem.dim; ++d) wanted[d] += weight * double(v[d]);
    }
    if (total == 0) {
      expect(std::isinf(run.lse[row]) && run.lse[row] < 0, "lse of a row without keys", row);
    } else {
      worst = std::max(worst, std::abs(double(run.lse[row]) - std::log(total)));
    }
    for (int64_t d = 0; d < problem.dim; ++d) {
      const double exact = total == 0 ? 0 : wanted[d] / total;
      worst = std::max(worst, std::abs(double(run.out[row * problem.dim + d]) - exact));
    }
  }
  return worst;
}

template <class T>
void test_forward(double tolerance) {
  for (const Lattice& lattice : kLattices) {
    for (const Metric metric : kMetrics) {
      const bool by_axis = metric == Metric::kL1 || metric == Metric::kChordalSquared;
      Run<T> run(lattice, metric, 67, 70, 5, by_axis ? lattice.axes : 1);
      run.forward();
      expect(error(run) < tolerance, "definition", lattice.axes, static_cast<int>(metric));
      run.problem.causal = true;
      run.problem.causal_group = 3;
      run.problem.query_offset = 4;
      run.problem.key_offset = 20;  // the first queries see nothing
      run.forward();
      expect(error(run) < tolerance, "causal definition", lattice.axes, static_cast<int>(metric));
    }
  }
}

// The derivative of <out, grad_out> + <lse, grad_lse>, by central differences, at some entries of each input.
void test_backward() {
  constexpr double kStep = 1e-5;
  Run<double> run(kLattices[5], Metric::kL1, 9, 70, 3, 3);
  run.problem.causal = true;
  run.problem.query_offset = 66;
  run.backward();
  const auto loss = [&] {
    run.forward();
    double sum = 0;
    for (size_t i = 0; i < run.out.size(); ++i) sum += run.out[i] * run.grad_out[i];
    for (size_t i = 0; i < run.lse.size(); ++i) sum += run.lse[i] * run.grad_lse[i];
    return sum;
  };
  const auto check = [&](std::vector<double>& values, const std::vector<double>& gradient, const char* what) {
    for (size_t i = 0; i < values.size(); i += 1 + values.size() / 40) {
      const double kept = values[i];
      values[i] = kept + kStep;
      const double above = loss();
      values[i] = kept - kStep;
      const double below = loss();
      values[i] = kept;
      expect(std::abs((above - below) / (2 * kStep) - gradient[i]) < 1e-7, what, i);
    }
  };
  check(run.q, run.grad_q, "gradient of q");
  check(run.k, run.grad_k, "gradient of k");
  check(run.v, run.grad_v, "gradient of v");
  check(run.slopes, run.grad_slopes, "gradient of the slopes");
}

void test_empty_rows_have_no_gradient() {
  Run<float> run(kLattices[0], Metric::kL1, 5, 6, 2);
  run.problem.causal = true;
  run.problem.key_offset = 3;
  std::fill(run.grad_lse.begin(), run.grad_lse.end(), std::numeric_limits<float>::quiet_NaN());
  for (size_t row = 0; row < run.grad_lse.size(); ++row) {
    if (row % 5 >= 3) run.grad_lse[row] = 1;  // these see keys
  }
  run.backward();
  for (size_t i = 0; i < run.grad_q.size(); ++i) {
    expect(std::isfinite(run.grad_q[i]) && (i / 2 % 5 >= 3 || run.grad_q[i] == 0), "gradient of q", i);
  }
  for (const float gradient : run.grad_k) expect(std::isfinite(gradient), "gradient of k");
  for (const float gradient : run.grad_slopes) expect(std::isfinite(gradient), "gradient of the slopes");
}

// What is lost stays below eps where every score is its bound, and steep slopes leave one tile a block.
void test_tiles_left_out() {
  const Lattice ring{1, {512, 1, 1}, {512, 1, 1}};
  Run<double> run(ring, Metric::kL1, 512, 512, 4);
  std::fill(run.q.begin(), run.q.end(), 1.0);
  std::fill(run.k.begin(), run.k.end(), 1.0);
  std::fill(run.slopes.begin(), run.slopes.end(), 0.1);
  run.forward();
  const std::vector<double> dense = run.lse;
  expect(run.tiles[0] == 0 && run.tiles[1] == 64, "eps 0 looks at every tile", run.tiles[0], run.tiles[1]);
  for (const double eps : {1e-6, 1e-2, 0.4}) {
    run.problem.eps = eps;
    run.forward();
    double lost = 0;
    for (size_t row = 0; row < dense.size(); ++row)
      lost = std::max(lost, 1 - std::exp(run.lse[row] - dense[row]));
    expect(run.tiles[0] > 0 && 0 < lost && lost <= eps, "what eps leaves out", run.tiles[0]);
  }
  std::fill(run.slopes.begin(), run.slopes.end(), 100.0);
  run.forward();
  expect(run.tiles[0] == 56 && run.tiles[1] == 64, "one tile a block", run.tiles[0]);
  run.slopes[0] = -1;
  run.forward();
  expect(run.tiles[0] == 0 && run.tiles[2] == 56, "a negative slope leaves nothing out", run.tiles[0]);
}

template <class T>
void test_threads_change_no_bit() {
  Run<T> one(kLattices[3], Metric::kChordal, 130, 200, 5), many = one;
  one.threads = 1;
  many.threads = 5;
  one.executor = host_executor(&one.threads);
  many.executor = host_executor(&many.threads);
  one.backward();
  many.backward();
  expect(one.out == many.out && one.lse == many.lse && one.grad_q == many.grad_q &&
             one.grad_k == many.grad_k && one.grad_v == many.grad_v && one.grad_slopes == many.grad_slopes,
         "threads change no bit");
}

}  // namespace

int main() {
  test_sites();
  test_steps();
  test_boxes();
  on_every_instruction_set([] {
    test_forward<float>(2e-5);
    test_forward<double>(1e-13);
    test_backward();
    test_empty_rows_have_no_gradient();
    test_tiles_left_out();
    test_threads_change_no_bit<float>();
    test_threads_change_no_bit<double>();
  });
  return summary();
}
