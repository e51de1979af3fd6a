// What each balancer makes of two or three task gradients in the plane.
//
// These are the rules of mtrl/balancers at their defaults; tests/docs/test_playground.py compares the two on random
// gradients. A rule takes the gradients g (T pairs of numbers) and the settings of the page, and returns
// { coefficients, direction, scale }: the update is sum_i coefficients[i] g[i] + scale * direction.
"use strict";

(function (root) {
  const TINY = 2.2250738585072014e-308;
  const ROUNDING = 10 * Math.sqrt(2 ** -52); // a sine below this counts as 0, as in mtrl.memory.rounding

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
  const length = (a) => Math.hypot(a[0], a[1]);
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const gramian = (g) => g.map((a) => g.map((b) => dot(a, b)));
  const combine = (coefficients, g) => [0, 1].map((axis) => sum(g.map((a, i) => coefficients[i] * a[axis])));
  const product = (G, w) => G.map((row) => sum(row.map((number, j) => number * w[j])));
  const quadratic = (G, w) => sum(product(G, w).map((number, i) => number * w[i]));
  const weights = (coefficients) => ({ coefficients, direction: [0, 0], scale: 0 });

  function updateOf(answer, g) {
    const own = combine(answer.coefficients, g);
    return [0, 1].map((axis) => own[axis] + answer.scale * answer.direction[axis]);
  }

  // Equal, static and normalised

  const equal = (g) => weights(g.map(() => 1));
  const fixed = (g, settings) => weights(g.map((_, i) => settings.weights[i]));

  function equalLengths(g) {
    const norms = g.map(length);
    const mean = sum(norms) / Math.max(norms.filter((norm) => norm > 0).length, 1);
    return norms.map((norm) => (norm > 0 ? mean / norm : 0));
  }

  const normalised = (g) => weights(equalLengths(g));

  // The memory: an update turns towards a direction d, which follows the update first

  function turned(answer, g, settings) {
    const update = updateOf(answer, g);
    const norm = length(update);
    const d = settings.memory;
    const remembered = length(d);
    if (!(norm > ROUNDING * Math.max(...g.map(length))) || remembered === 0) return answer;
    const decay = settings.decay;
    let cosine = Math.max(-1, Math.min(1, dot(update, d) / remembered / norm));
    const square = decay ** 2 + (1 - decay) ** 2 + 2 * decay * (1 - decay) * cosine;
    const size = Math.sqrt(Math.max(square, 0));
    if (size <= ROUNDING) return answer;
    const keep = decay / size;
    const add = (1 - decay) / size;
    cosine = Math.max(-1, Math.min(1, keep * cosine + add));
    const sine = Math.sqrt(1 - cosine ** 2);
    if (sine <= ROUNDING) return answer;
    const angle = Math.min(settings.angle, Math.acos(cosine));
    const along = Math.sin(angle) / sine;
    const own = Math.cos(angle) - along * cosine;
    return {
      coefficients: answer.coefficients.map((coefficient) => own * coefficient),
      direction: [0, 1].map((axis) => (keep * d[axis]) / remembered + (add * update[axis]) / norm),
      scale: norm * along,
    };
  }

  const memory = (g, settings) => turned(normalised(g), g, settings);
  const equalMemory = (g, settings) => turned(equal(g), g, settings);

  // PCGrad, as the mean over the orders in which each task can meet the others

  function orders(others) {
    if (others.length < 2) return [others];
    return others.flatMap((first) => orders(others.filter((j) => j !== first)).map((rest) => [first, ...rest]));
  }

  function projected(G) {
    const tasks = G.map((_, i) => i);
    const coefficients = tasks.map(() => 1);
    for (const i of tasks) {
      const all = orders(tasks.filter((j) => j !== i));
      for (const order of all) {
        let along = G[i].slice(); // <g_i^pc, g_j> for every j
        for (const j of order) {
          if (!(along[j] < 0) || G[j][j] <= TINY) continue;
          const step = along[j] / G[j][j];
          coefficients[j] -= step / all.length;
          along = along.map((number, k) => number - step * G[j][k]);
        }
      }
    }
    return coefficients;
  }

  const pcgrad = (g) => weights(projected(gramian(g)));

  // GradNorm, after `steps` updates with these gradients and losses

  function raised(start, floor) {
    const total = start.length;
    const there = sum(start);
    let w = start.map((weight) => weight * (total / there));
    let low = w.map((weight) => weight < floor);
    while (low.some(Boolean)) {
      if (low.every(Boolean)) return w.map(() => 1);
      const free = total - floor * low.filter(Boolean).length;
      const above = sum(w.filter((_, i) => !low[i]));
      w = w.map((weight, i) => (low[i] ? floor : (weight * free) / above));
      if (!w.some((weight) => weight < floor)) break;
      low = low.map((is, i) => is || w[i] < floor);
    }
    return w;
  }

  function gradnormWeights(g, settings) {
    const norms = g.map(length);
    const left = settings.losses; // L_i / L_i(0)
    const mean = sum(left) / left.length;
    const rates = left.map((each) => (mean > 0 ? each / mean : 1));
    let w = g.map(() => 1);
    for (let step = 0; step < settings.steps; step += 1) {
      const weighted = w.map((weight, i) => weight * norms[i]);
      const level = sum(weighted) / weighted.length;
      if (!(level > 0)) break;
      const moved = w.map((weight, i) => {
        const sign = Math.sign(weighted[i] - level * rates[i] ** settings.alpha);
        return weight * Math.exp(-settings.lr * ((weight * sign * norms[i]) / level));
      });
      w = raised(moved, settings.floor);
    }
    return w;
  }

  const gradnorm = (g, settings) => weights(gradnormWeights(g, settings));

  function gradnormPcgrad(g, settings) {
    const w = gradnormWeights(g, settings);
    const G = gramian(g).map((row, i) => row.map((number, j) => number * w[i] * w[j]));
    return weights(projected(G).map((coefficient, i) => coefficient * w[i]));
  }

  // RGB, at the last of `calls` calls with these gradients

  function rgb(g, settings) {
    const norms = g.map(length);
    const there = norms.map((norm) => norm > 0);
    const count = Math.max(there.filter(Boolean).length, 1);
    const inverse = norms.map((norm) => (norm > 0 ? 1 / norm : 0));
    const u = g.map((a, i) => [a[0] * inverse[i], a[1] * inverse[i]]);
    const total = combine(u.map(() => 1), u);
    const plain = inverse.map((each) => (sum(norms) / count) * each);
    // With the same gradients at every call, the consensus is the direction of their mean from the first call on.
    if (length(total) / count <= ROUNDING || count < 2) return weights(plain);
    const d = [total[0] / length(total), total[1] / length(total)];
    const c = u.map((a) => dot(a, d));
    const s = c.map((along) => Math.sqrt(Math.max(1 - along ** 2, 0)));
    const turns = s.map((sine, i) => sine > ROUNDING && there[i]);
    const w = u.map((a, i) => (turns[i] ? [0, 1].map((axis) => (d[axis] - c[i] * a[axis]) / s[i]) : [0, 0]));
    const angles = u.map(() => 0);
    const proximity = settings.lambda / (2 * count);
    const agreement = 1 / (count * (count - 1));
    for (let call = 0; call < settings.calls; call += 1) {
      // A task without a plane to turn in keeps its angle of 0; its gradient counts in S while the others turn.
      const a = angles.map((angle, i) => (turns[i] ? angle : 0));
      for (let step = 0; step < 3; step += 1) {
        const cos = a.map(Math.cos);
        const sin = a.map(Math.sin);
        const S = [0, 1].map((axis) => sum(u.map((_, j) => cos[j] * u[j][axis] + sin[j] * w[j][axis])));
        a.forEach((angle, i) => {
          const slope = proximity * sin[i] - agreement * (cos[i] * dot(S, w[i]) - sin[i] * dot(S, u[i]));
          a[i] = Math.min(Math.max(angle - 0.2 * slope, 0), Math.PI / 2 - 1e-6);
        });
      }
      turns.forEach((turning, i) => {
        if (turning) angles[i] = a[i];
      });
    }
    const ratio = angles.map((angle, i) => (turns[i] ? Math.sin(angle) / s[i] : 0));
    return {
      coefficients: plain.map((each, i) => each * ((turns[i] ? Math.cos(angles[i]) : 1) - c[i] * ratio[i])),
      direction: d,
      scale: (sum(norms) / count) * sum(ratio),
    };
  }

  // AIM with one threshold for all pairs

  function aim(g, settings) {
    const G = gramian(g);
    const norms = g.map(length);
    const coefficients = g.map((_, j) => {
      if (norms[j] === 0) return 1;
      return (
        1 -
        sum(
          g.map((__, i) => {
            if (i === j || norms[i] === 0) return 0;
            const cosine = Math.max(-1, Math.min(1, G[i][j] / (norms[i] * norms[j])));
            const intervention = 1 / (1 + Math.exp(-settings.k * (settings.tau - cosine)));
            return (intervention * G[i][j]) / G[j][j];
          })
        )
      );
    });
    return weights(coefficients);
  }

  // TorchJD's MGDA: Frank-Wolfe on the shortest vector of the convex hull

  function mgda(g) {
    const G = gramian(g);
    let alpha = g.map(() => 1 / g.length);
    for (let iteration = 0; iteration < 100; iteration += 1) {
      const along = product(G, alpha);
      const t = along.indexOf(Math.min(...along));
      const a = along[t];
      const b = quadratic(G, alpha);
      const c = G[t][t];
      let gamma = (b - a) / (b + c - 2 * a);
      if (c <= a) gamma = 1;
      else if (b <= a) gamma = 0;
      alpha = alpha.map((each, i) => (1 - gamma) * each + (i === t ? gamma : 0));
      if (gamma < 0.001) break;
    }
    return weights(alpha);
  }

  // TorchJD's UPGrad: the mean of the gradients, each projected onto the cone of directions that harm no task

  function solve(matrix, right) {
    const rows = matrix.map((row, i) => [...row, right[i]]);
    const size = rows.length;
    for (let i = 0; i < size; i += 1) {
      for (let k = i + 1; k < size; k += 1) {
        const factor = rows[k][i] / rows[i][i]; // the matrix is positive definite: no pivot is 0
        for (let j = i; j <= size; j += 1) rows[k][j] -= factor * rows[i][j];
      }
    }
    const found = Array(size).fill(0);
    for (let i = size - 1; i >= 0; i -= 1) {
      const rest = sum(found.map((value, j) => (j > i ? rows[i][j] * value : 0)));
      found[i] = (rows[i][size] - rest) / rows[i][i];
    }
    return found;
  }

  function coneProjection(H, u) {
    // The v >= u with the least v H v: of all sets of free components, the one whose solution meets the conditions.
    let best = null;
    for (let set = 0; set < 2 ** u.length; set += 1) {
      const free = u.map((_, i) => i).filter((i) => (set >> i) & 1);
      const v = u.slice();
      const held = u.map((value, i) => (free.includes(i) ? 0 : value));
      const right = product(H, held);
      solve(free.map((i) => free.map((j) => H[i][j])), free.map((i) => -right[i])).forEach((value, k) => {
        v[free[k]] = value;
      });
      const slopes = product(H, v);
      const broken = Math.max(...v.map((value, i) => Math.max(u[i] - value, free.includes(i) ? 0 : -slopes[i])));
      if (best === null || broken < best.broken) best = { v, broken };
    }
    return best.v;
  }

  function upgrad(g) {
    const G = gramian(g);
    const trace = sum(G.map((row, i) => row[i]));
    const H = G.map((row, i) => row.map((number, j) => (trace < 1e-4 ? 0 : number / trace) + (i === j ? 1e-4 : 0)));
    const coefficients = g.map(() => 0);
    g.forEach((_, i) => {
      const u = g.map((__, j) => (i === j ? 1 / g.length : 0));
      coneProjection(H, u).forEach((value, j) => {
        coefficients[j] += value;
      });
    });
    return weights(coefficients);
  }

  // TorchJD's CAGrad with c = 0.5: near the mean g_0, the direction that is best for the task it serves least

  function cagrad(g) {
    const size = g.length;
    const trace = sum(g.map((a) => dot(a, a)));
    const unit = g.map((a) => (trace < 1e-4 ? [0, 0] : [a[0] / Math.sqrt(trace), a[1] / Math.sqrt(trace)]));
    const mean = combine(unit.map(() => 1 / size), unit);
    const reach = 0.5 * length(mean);
    // As c < 1, the least value over the convex hull of the gradients lies on an edge of it.
    let best = null;
    for (let i = 0; i < size; i += 1) {
      for (let j = i + 1; j < size; j += 1) {
        const edge = [unit[j][0] - unit[i][0], unit[j][1] - unit[i][1]];
        const at = (share) => [unit[i][0] + share * edge[0], unit[i][1] + share * edge[1]];
        const slope = (share) => dot(edge, mean) + (reach * dot(edge, at(share))) / Math.max(length(at(share)), TINY);
        let [low, high] = [0, 1];
        for (let round = 0; round < 100; round += 1) {
          const middle = (low + high) / 2;
          if (slope(middle) < 0) low = middle;
          else high = middle;
        }
        const share = (low + high) / 2;
        const value = dot(at(share), mean) + reach * length(at(share));
        if (best === null || value < best.value) best = { value, i, j, share, norm: length(at(share)) };
      }
    }
    if (best.norm < 1e-4) return weights(g.map(() => 0));
    const w = g.map((_, k) => (k === best.i ? 1 - best.share : 0) + (k === best.j ? best.share : 0));
    return weights(w.map((each) => 1 / size + (reach / best.norm) * each));
  }

  const rules = {
    equal,
    equal_memory: equalMemory,
    static: fixed,
    normalised,
    memory,
    gradnorm,
    pcgrad,
    gradnorm_pcgrad: gradnormPcgrad,
    rgb,
    aim,
    mgda,
    upgrad,
    cagrad,
  };

  const defaults = () => ({
    weights: [1, 1, 1],
    losses: [1, 1, 1],
    alpha: 1.5,
    lr: 0.01,
    floor: 0.1,
    steps: 300,
    lambda: 1,
    calls: 1,
    tau: 0,
    k: 10,
    memory: [0.6, 0.8],
    angle: 0.8,
    decay: 0.9,
  });

  // The answer of the rule `name` to the gradients g, with its update.
  function answer(name, g, settings) {
    const given = { ...defaults(), ...settings };
    given.losses = given.losses.slice(0, g.length);
    const found = rules[name](g, given);
    return { ...found, update: updateOf(found, g) };
  }

  root.Balancers = { answer, defaults, names: Object.keys(rules), dot, length };
})(globalThis);
