// ctest of the torch-free part, on every instruction set: Philox, the sampler, known volumes, and the
// backward against finite differences.
#include "simplex_cv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/test.h"
#include "simplex_cv_math.h"

using namespace stratcore;
using namespace stratcore::test;
using namespace stratcore::simplex_cv;

namespace {

// Known answers of Random123 1.14.
void test_philox() {
  const PhiloxBlock zeros = philox(0, 0, 0), ones = philox(~0ull, ~0ull, ~0ull);
  const uint32_t of_zeros[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t of_ones[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  const PhiloxBlock digits = philox(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull);
  const uint32_t of_digits[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  expect(std::equal(of_zeros, of_zeros + 4, zeros.word), "Philox of zeros");
  expect(std::equal(of_ones, of_ones + 4, ones.word), "Philox of ones");
  expect(std::equal(of_digits, of_digits + 4, digits.word), "Philox of the digits of pi");
}

struct Run {
  std::vector<double> x, volumes, state;
  std::vector<int64_t> indices;
  double loss = 0, cv = 0, mean = 0, deviation = 0;
  int64_t count = 0;
  int64_t seed[2] = {11 + (int64_t(5) << 40), 3 - (int64_t(9) << 35)};  // all their words count
  int32_t threads = 2;
  Executor executor = host_executor(&threads);
  Problem problem{};

  Run(int64_t rows, int64_t dim, int32_t order, int64_t simplices)
      : x(random_values(rows * dim, 5)), volumes(simplices), state(State::size(simplices, order)),
        indices(simplices * (order + 1)) {
    problem = {x.data(), Element::kFloat64, rows, dim, rows, simplices, order, 0.2, 0, 2, 0};
  }

  Sample sample() {
    return {&loss,          &cv,
            &mean,          &deviation,
            &count,         volumes.data(),
            indices.data(), {state.data(), problem.simplices}};
  }
  void forward() { forward_cpu(problem, seed, sample(), nullptr, executor); }
};

template <int K>
void test_sample() {
  Run run(K + 2, 3, K, 1003);
  run.forward();
  const std::vector<int64_t> drawn = run.indices;
  run.threads = 5;
  run.forward();
  expect(run.indices == drawn, "one sample for any number of threads");
  for (int64_t s = 0; s < 1003; ++s) {
    int64_t rows[K + 1];
    draw_vertices<K>(run.seed[0], run.seed[1], s, K + 2, rows);
    expect(std::equal(rows, rows + K + 1, drawn.data() + s * (K + 1)), "the sample of draw_vertices");
    std::sort(rows, rows + K + 1);
    expect(std::adjacent_find(rows, rows + K + 1) == rows + K + 1, "distinct vertices");
    expect(rows[0] >= 0 && rows[K] < K + 2, "vertices of the pool");
  }
}

// Unit vectors and the origin: V = 1 / k!; without the origin (a regular simplex of edge sqrt 2) sqrt(k + 1)
// / k!.
void test_known_volumes() {
  Run run(5, 4, 4, 8);
  std::fill(run.x.begin(), run.x.end(), 0.0);
  for (int i = 0; i < 4; ++i) run.x[i * 4 + i] = 1;
  run.forward();
  for (const double volume : run.volumes) expect(std::abs(volume - 1.0 / 24) < 1e-15, "corner of a cube");
  expect(run.count == 8 && run.deviation < 1e-15 && std::abs(run.mean - 1.0 / 24) < 1e-15, "statistics");
  run.x[0] = 0;  // two equal vertices
  run.forward();
  expect(run.count == 0 && run.loss == 0 && std::isnan(run.cv), "degenerate simplices do not count");
  for (size_t i = 4; i < run.state.size(); ++i) {
    expect(run.state[i] == 0, "no volume and no gradient of a degenerate simplex");
  }
}

void test_backward(int32_t order, int64_t dim) {
  constexpr double kStep = 1e-6;
  Run run(12, dim, order, 9);
  run.forward();
  const double one[] = {0.7, -1.3, 0.4, 2.1};
  const std::vector<double> each{0.3, -0.2, 0.9, 0, 1, -2, 0.5, 0.1, -0.6};
  std::vector<double> grad(run.x.size());
  const Cotangents cotangents{one, one + 1, one + 2, one + 3, each.data()};
  backward_cpu(run.problem, run.indices.data(), {run.state.data(), 9}, cotangents, grad.data(), run.executor);
  const auto value = [&] {
    run.forward();
    double sum = one[0] * run.loss + one[1] * run.cv + one[2] * run.mean + one[3] * run.deviation;
    for (size_t s = 0; s < each.size(); ++s) sum += each[s] * run.volumes[s];
    return sum;
  };
  for (size_t i = 0; i < run.x.size(); ++i) {
    const double kept = run.x[i];
    run.x[i] = kept + kStep;
    const double above = value();
    run.x[i] = kept - kStep;
    const double below = value();
    run.x[i] = kept;
    const double slope = (above - below) / (2 * kStep);
    expect(std::abs(slope - grad[i]) < 1e-6 * (1 + std::abs(slope)), "gradient of x");
  }
}

}  // namespace

int main() {
  test_philox();
  on_every_instruction_set([] {
    test_sample<1>();
    test_sample<4>();
    test_sample<8>();
    test_known_volumes();
    for (const int64_t dim : {8, 11, 19}) {
      for (const int32_t order : {1, 2, 4, 8}) test_backward(order, dim);
    }
  });
  return summary();
}
