/** One update of Adam, in place: a = {theta, m, v, t}. */
export function adam(a, g, rate = 0.03, betas = [0.99, 0.999]) {
  a.t++;
  a.theta = a.theta.map((v, k) => {
    a.m[k] = betas[0] * a.m[k] + (1 - betas[0]) * g[k];
    a.v[k] = betas[1] * a.v[k] + (1 - betas[1]) * g[k] ** 2;
    return v - (rate * a.m[k]) / (1 - betas[0] ** a.t) / (Math.sqrt(a.v[k] / (1 - betas[1] ** a.t)) + 1e-8);
  });
}
