/* Rollouts and updates of the actor-critics of `actors.ColourLearner`, one lifetime after the other.

   What one lifetime needs - two small networks and the steps of a few walkers - stays in the nearest cache,
   and what a walker sees is a handful of ones: the first layer is a sum of rows. Eight samples are computed
   side by side. The chance is drawn outside, so that the same numbers give the same life as the batched tensors of `actors.py`. */

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int L = 8;  // samples side by side, in vector lanes
typedef float lane __attribute__((vector_size(4 * L)));

float sum(lane x) {
    float total = 0;
    for (int k = 0; k < L; k++) total += x[k];
    return total;
}

// y[j] = b[j] + sum_i x[i] m(i, j), four at a time so that they stay in registers.
template <class M> void product(lane *y, const float *b, const lane *x, int in, int out, M m) {
    int j = 0;
    for (; j + 4 <= out; j += 4) {
        lane s[4] = {};
        for (int i = 0; i < in; i++)
            for (int q = 0; q < 4; q++) s[q] += x[i] * m(i, j + q);
        for (int q = 0; q < 4; q++) y[j + q] = s[q] + (b ? b[j + q] : 0.f);
    }
    for (; j < out; j++) {
        lane s = {};
        for (int i = 0; i < in; i++) s += x[i] * m(i, j);
        y[j] = s + (b ? b[j] : 0.f);
    }
}

struct Gradient {  // of one network; but for the first layer's weights, lane by lane
    std::vector<float> first;
    std::vector<std::vector<lane>> w, b;

    Gradient(int layers, const int *widths) : first(widths[0] * widths[1]), w(layers), b(layers) {
        for (int l = 0; l < layers; l++) {
            w[l].resize(l ? widths[l] * widths[l + 1] : 0);
            b[l].resize(widths[l + 1]);
        }
    }

    void zero() {
        std::fill(first.begin(), first.end(), 0.f);
        for (auto &part : w) std::fill(part.begin(), part.end(), lane{});
        for (auto &part : b) std::fill(part.begin(), part.end(), lane{});
    }
};

struct Net {  // of one lifetime: layer l is w[l] (in, out) and b[l] (out)
    int layers, ones;
    const int *widths;
    std::vector<float *> w, b;
    std::vector<std::vector<lane>> h, s;  // what comes out of each layer, and its slope
    std::vector<float> row;

    Net(int layers, int ones, const int *widths, float *const *params, long life)
        : layers(layers), ones(ones), widths(widths), h(layers), s(layers), row(widths[1]) {
        for (int l = 0; l < layers; l++) {
            w.push_back(params[2 * l] + life * widths[l] * widths[l + 1]);
            b.push_back(params[2 * l + 1] + life * widths[l + 1]);
            h[l].resize(widths[l + 1]), s[l].resize(widths[l + 1]);
        }
    }

    // Outputs for up to L samples; hot[k]: where sample k shows its ones.
    const lane *forward(const int *const *hot, int samples) {
        const int first = widths[1];
        for (int k = 0; k < samples; k++) {
            std::copy(b[0], b[0] + first, row.begin());
            for (int i = 0; i < ones; i++) {
                const float *__restrict from = w[0] + hot[k][i] * first;
                for (int j = 0; j < first; j++) row[j] += from[j];
            }
            for (int j = 0; j < first; j++) h[0][j][k] = row[j];
        }
        for (int l = 1; l < layers; l++) {
            const int out = widths[l + 1];
            const float *m = w[l];
            for (auto &y : h[l - 1]) y = y > 0 ? y : lane{};
            product(h[l].data(), b[l], h[l - 1].data(), widths[l], out,
                    [=](int i, int j) { return m[i * out + j]; });
        }
        return h.back().data();
    }

    // Adds the gradient of the samples just sent forward, s.back() being the slope of the outputs.
    void backward(const int *const *hot, int samples, Gradient &into) {
        for (int l = layers - 1; l >= 0; l--) {
            const int in = widths[l], out = widths[l + 1];
            for (int j = 0; j < out; j++) into.b[l][j] += s[l][j];
            if (!l) break;
            const float *m = w[l];
            for (int i = 0; i < in; i++)
                for (int j = 0; j < out; j++) into.w[l][i * out + j] += h[l - 1][i] * s[l][j];
            product(s[l - 1].data(), nullptr, s[l].data(), out, in,
                    [=](int j, int i) { return m[i * out + j]; });
            for (int i = 0; i < in; i++) s[l - 1][i] = h[l - 1][i] > 0 ? s[l - 1][i] : lane{};
        }
        const int first = widths[1];
        for (int k = 0; k < samples; k++) {
            for (int j = 0; j < first; j++) row[j] = s[0][j][k];
            for (int i = 0; i < ones; i++) {
                float *__restrict g = into.first.data() + hot[k][i] * first;
                for (int j = 0; j < first; j++) g[j] += row[j];
            }
        }
    }

    // params -= rate * gradient
    void descend(const Gradient &g, float rate) {
        for (size_t i = 0; i < g.first.size(); i++) w[0][i] -= rate * g.first[i];
        for (int l = 0; l < layers; l++) {
            for (size_t i = 0; i < g.w[l].size(); i++) w[l][i] -= rate * sum(g.w[l][i]);
            for (size_t j = 0; j < g.b[l].size(); j++) b[l][j] -= rate * sum(g.b[l][j]);
        }
    }
};

}  // namespace

extern "C" {

/* T steps of B walkers of lifetimes [from, to). cells (S, B, 4) move on; noise (T, S, B, 4), draws
   (T, S, B); seen (S, T + 1, B) arrangements, actions (S, T, B), rewards (S, T, B). hot
   (arrangements, ones): where an arrangement shows ones. */
void rollout(int S, int B, int T, int size, int64_t period, int ones, const int *hot, int layers,
             const int *widths, float *const *actor, int64_t *cells, const float *noise,
             const int64_t *draws, int *seen, int64_t *actions, float *rewards, int from, int to) {
    const int count = size * size;
    for (long s = from; s < to; s++) {
        Net net(layers, ones, widths, actor, s);
        for (int t = 0; t <= T; t++) {
            for (int first = 0; first < B; first += L) {
                const int n = std::min(L, B - first);
                const int *here[L];
                for (int k = 0; k < n; k++) {
                    const int64_t *cell = cells + (s * B + first + k) * 4;
                    int &saw = seen[(s * (T + 1) + t) * B + first + k];
                    saw = (cell[1] * count + cell[2]) * count + cell[3];
                    here[k] = hot + long(saw) * ones;
                }
                if (t == T) continue;
                const lane *y = net.forward(here, n);
                for (int k = 0; k < n; k++) {
                    const long b = first + k, at = (t * long(S) + s) * B + b, put = (s * T + t) * B + b;
                    int64_t *cell = cells + (s * B + b) * 4;
                    int64_t &time = cell[0], &me = cell[1];
                    int go = 0;
                    for (int a = 1; a < 4; a++)
                        if (y[a][k] + noise[4 * at + a] > y[go][k] + noise[4 * at + go]) go = a;
                    const int row = me / size, column = me % size;
                    if (go == 0 && row > 0) me -= size;
                    if (go == 1 && row < size - 1) me += size;
                    if (go == 2 && column > 0) me -= 1;
                    if (go == 3 && column < size - 1) me += 1;
                    float reward = -0.04f;
                    for (int thing = 0; thing < 2; thing++) {
                        if (cell[2 + thing] != me) continue;
                        reward = thing == time / period % 2 ? 1.f : -1.f;
                        const int64_t other = cell[3 - thing];
                        int64_t fresh = draws[at];
                        fresh += fresh >= std::min(me, other);
                        fresh += fresh >= std::max(me, other);
                        cell[2 + thing] = fresh;
                        break;
                    }
                    time++;
                    actions[put] = go, rewards[put] = reward;
                }
            }
        }
    }
}

/* One update of lifetimes [from, to) on what `rollout` left, in place. eps (S,) or null. widen (like
   actor, zeros) or null: the gradient of the mean entropy, of the actor before the update. */
void learn(int S, int B, int T, int ones, const int *hot, int layers, const int *widths,
           const int *critic_widths, float *const *actor, float *const *critic, const int *seen,
           const int64_t *actions, const float *rewards, const float *eps, float *const *widen, float rate,
           float discount, float weight, int from, int to) {
    Gradient up(layers, widths), wide(layers, widths), of_value(layers, critic_widths);
    const int samples = T * B;
    const float share = 1.f / samples;
    std::vector<float> returns((T + 1) * B);
    for (long life = from; life < to; life++) {
        Net policy(layers, ones, widths, actor, life), value(layers, ones, critic_widths, critic, life);
        up.zero(), wide.zero(), of_value.zero();
        const int *saw = seen + life * (T + 1) * B;
        const int *here[L];
        auto look = [&](int first, int end) {
            const int n = std::min(L, end - first);
            for (int k = 0; k < n; k++) here[k] = hot + long(saw[first + k]) * ones;
            return n;
        };
        for (int first = samples; first < samples + B; first += L) {
            const int n = look(first, samples + B);
            const lane *v = value.forward(here, n);
            for (int k = 0; k < n; k++) returns[first + k] = v[0][k];
        }
        for (int i = samples - 1; i >= 0; i--)
            returns[i] = rewards[life * samples + i] + discount * returns[i + B];
        for (int first = 0; first < samples; first += L) {
            const int n = look(first, samples);
            lane advantage = {};
            const lane *v = value.forward(here, n);
            for (int k = 0; k < n; k++) advantage[k] = returns[first + k] - v[0][k];
            value.s.back()[0] = -weight * share * advantage;
            value.backward(here, n, of_value);
            const lane *y = policy.forward(here, n);
            lane p[4] = {}, open[4] = {}, entropy = {}, down[4] = {};
            for (int k = 0; k < n; k++) {
                const float top = std::max(std::max(y[0][k], y[1][k]), std::max(y[2][k], y[3][k]));
                float total = 0;
                for (int a = 0; a < 4; a++) total += p[a][k] = std::exp(y[a][k] - top);
                const float rest = top + std::log(total);
                for (int a = 0; a < 4; a++) {
                    p[a][k] /= total, open[a][k] = y[a][k] - rest;
                    entropy[k] -= p[a][k] * open[a][k];
                }
            }
            for (int a = 0; a < 4; a++) {
                lane taken = {};
                for (int k = 0; k < n; k++) taken[k] = actions[life * samples + first + k] == a;
                open[a] = -share * p[a] * (open[a] + entropy);
                down[a] = share * advantage * (p[a] - taken) - (eps ? eps[life] : 0.f) * open[a];
            }
            std::copy(down, down + 4, policy.s.back().begin());
            policy.backward(here, n, up);
            if (!widen) continue;
            std::copy(open, open + 4, policy.s.back().begin());
            policy.backward(here, n, wide);
        }
        policy.descend(up, rate), value.descend(of_value, rate);
        if (widen) Net(layers, ones, widths, widen, life).descend(wide, -1.f);
    }
}

}  // extern "C"
