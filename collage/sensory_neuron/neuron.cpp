/* Whole episodes of SwingUp with the agent of 913 parameters, 16 at a time in vector lanes.

   A lane whose episode is over takes the next one of the queue, with the weights of its member: no
   lane computes for a cart that has left the track, until the queue is empty. Everything stays in registers and the nearest
   caches; only returns and lengths are written. tanh is a rational function of our own fit, within
   5e-7 of the true one. The constants are those of `environments.SwingUp`; tests hold them equal. */

#include <cmath>
#include <cstring>

// One library for all: wide registers where the processor has them, chosen when it is loaded. Each
// lane's sums are the same in all of them.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define WIDE
#endif

constexpr int L = 16;   // lanes
constexpr int N = 5;    // sensors
constexpr int H = 8;    // units of a sensor's LSTM
constexpr int K = 11;   // what a gate hears: H units, the reading, the last action, 1
constexpr int M = 16;   // numbers in the code
// Where the folded weights of an agent lie (see `AttentionNeuron.fold`).
constexpr int QUERIES = 4 * H * K, HEAD = QUERIES + M * H, W = HEAD + M + 1;

typedef float lane __attribute__((vector_size(4 * L)));

static inline lane tanh_(lane x) {
    const lane top = (lane){} + 8.25f;
    x = x > top ? top : x;
    x = x < -top ? -top : x;
    const lane u = x * x;
    const lane n = 9.99999181e-01f + u * (1.28908447e-01f + u * (2.91454842e-03f + u * 1.10520098e-05f));
    const lane d = 1.f + u * (4.62238820e-01f + u * (2.36639665e-02f
                       + u * (2.33621527e-04f + u * 2.34212248e-07f)));
    return x * n / d;
}

/* a gate that opens and closes: its weights come halved, sigmoid(x) = (1 + tanh(x / 2)) / 2 */
static inline lane open_(lane half) { return .5f + .5f * tanh_(half); }

static inline lane sin_(lane x) { lane y; for (int l = 0; l < L; l++) y[l] = sinf(x[l]); return y; }
static inline lane cos_(lane x) { lane y; for (int l = 0; l < L; l++) y[l] = cosf(x[l]); return y; }

/* weights (P, W); starts (E, 4): x, v, angle, rate; member (E,) -> returns, lengths (E,) */
extern "C" WIDE void rollouts(const float *weights, const float *starts, const int *member, int episodes,
                         int steps, float *returns, int *lengths) {
    alignas(64) float w[W][L] = {}, state[4][L] = {};
    lane h[N][H] = {}, c[N][H] = {}, total = {}, action = {};
    int who[L], age[L] = {}, next = 0, busy = 0;
    for (int l = 0; l < L; l++) who[l] = -1;
    for (;;) {
        for (int l = 0; l < L; l++) {
            if (who[l] >= 0 && age[l] < steps && fabsf(state[0][l]) <= 2.4f) continue;
            if (who[l] >= 0) {
                returns[who[l]] = total[l], lengths[who[l]] = age[l];
                who[l] = -1, busy--;
                for (auto &row : state) row[l] = 0;
            }
            if (next == episodes) continue;
            for (int k = 0; k < W; k++) w[k][l] = weights[(long)member[next] * W + k];
            for (int k = 0; k < 4; k++) state[k][l] = starts[4l * next + k];
            for (int i = 0; i < N; i++)
                for (int j = 0; j < H; j++) h[i][j][l] = c[i][j][l] = 0;
            total[l] = action[l] = 0, age[l] = 0, who[l] = next++, busy++;
        }
        if (!busy) return;
        const auto weight = [&](int k) { return *(const lane *)w[k]; };
        lane x = *(lane *)state[0], v = *(lane *)state[1], a = *(lane *)state[2], r = *(lane *)state[3];
        const lane sin = sin_(a), cos = cos_(a);
        const lane reading[N] = {x, v, cos, sin, r};

        // The sensors' LSTM: one unit of all sensors at a time; every gate reads the old h.
        lane fresh[N][H];
        for (int j = 0; j < H; j++) {
            lane gate[4][N];
            for (int q = 0; q < 4; q++) {
                const int u = (q * H + j) * K;
                const lane base = weight(u + H + 1) * action + weight(u + H + 2);
                for (int i = 0; i < N; i++) gate[q][i] = base + weight(u + H) * reading[i];
                for (int k = 0; k < H; k++) {
                    const lane wh = weight(u + k);
                    for (int i = 0; i < N; i++) gate[q][i] += wh * h[i][k];
                }
            }
            for (int i = 0; i < N; i++) {
                c[i][j] = open_(gate[1][i]) * c[i][j] + open_(gate[0][i]) * tanh_(gate[3][i]);
                fresh[i][j] = open_(gate[2][i]) * tanh_(c[i][j]);
            }
        }
        memcpy(h, fresh, sizeof h);

        // Attention with fixed queries, the code, and the head.
        lane out = weight(HEAD + M);
        for (int m = 0; m < M; m++) {
            lane score[N] = {}, code = {};
            for (int k = 0; k < H; k++) {
                const lane query = weight(QUERIES + m * H + k);
                for (int i = 0; i < N; i++) score[i] += query * h[i][k];
            }
            for (int i = 0; i < N; i++) code += tanh_(score[i]) * reading[i];
            out += weight(HEAD + m) * tanh_(code);
        }
        action = tanh_(out);

        // The cart and its pole: explicit Euler, positions with the old velocities.
        const lane below = 4.f - 1.5f * cos * cos, spin = .3f * r * r * sin, push = 10.f * action - .1f * v;
        const lane dv = (-2.f * spin + 14.73f * sin * cos + 4.f * push) / below;
        const lane dr = (-3.f * spin * cos + 58.92f * sin + 6.f * push * cos) / (.6f * below);
        x += .01f * v, v += .01f * dv, a += .01f * r, r += .01f * dr;
        total += .5f * (cos_(a) + 1.f) * cos_(.6544984694978736f * x);
        *(lane *)state[0] = x, *(lane *)state[1] = v, *(lane *)state[2] = a, *(lane *)state[3] = r;
        for (int l = 0; l < L; l++) age[l]++;
    }
}
