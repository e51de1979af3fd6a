// The methods of the playground: name, one line about each, its page, and the settings that belong to it.
"use strict";

(function (root) {
  const methods = [
    ["equal", "equal", "adds the gradients: the baseline", "equal"],
    ["equal_memory", "equal, memory", "the sum, turned towards remembered updates: the agents' default", "memory"],
    ["static", "static", "adds them with weights that you choose", "static"],
    ["normalised", "normalised", "brings all to one length, then adds", "normalised"],
    ["memory", "memory", "normalised, then turned towards remembered updates", "memory"],
    ["gradnorm", "gradnorm", "learns weights: equal lengths, longer where a loss lags behind", "gradnorm"],
    ["pcgrad", "pcgrad", "cuts off what conflicts; the mean over its random orders", "pcgrad"],
    ["gradnorm_pcgrad", "gradnorm_pcgrad", "GradNorm's weights, then PCGrad's cuts", "gradnorm_pcgrad"],
    ["rgb", "rgb", "turns each gradient towards their mean direction", "rgb"],
    ["aim", "aim", "cuts off conflicts below a threshold, which it learns", "aim"],
    ["mgda", "torchjd:MGDA", "the shortest weighted mean of the gradients", "torchjd"],
    ["upgrad", "torchjd:UPGrad", "the mean, after each gradient was made harmless to all tasks", "torchjd"],
    ["cagrad", "torchjd:CAGrad", "near the mean, best for the task it serves least (c = 0.5)", "torchjd"],
  ].map(([id, name, note, page]) => ({ id, name, note, page }));

  // Sliders: [setting, label, least, most, step]; `each` stands for one slider per task.
  const groups = [
    { of: ["static"], title: "static", sliders: [["weights", "weight of task", 0, 3, 0.05, "each"]] },
    {
      of: ["gradnorm", "gradnorm_pcgrad"],
      title: "gradnorm, after some updates with these gradients and losses",
      sliders: [
        ["losses", "share of its first loss that is left, task", 0.05, 1, 0.05, "each"],
        ["alpha", "alpha: how much a lagging task gains", 0, 3, 0.1],
        ["steps", "updates so far", 0, 1000, 10],
      ],
    },
    {
      of: ["rgb"],
      title: "rgb, after some calls with these gradients",
      sliders: [
        ["calls", "calls so far", 1, 100, 1],
        ["lambda", "lambda: how much each gradient resists", 0, 4, 0.1],
      ],
    },
    {
      of: ["aim"],
      title: "aim, with one threshold for all pairs",
      sliders: [
        ["tau", "threshold: cosines below it are cut", -1, 1, 0.05],
        ["k", "how sharp the threshold is", 1, 30, 1],
      ],
    },
    {
      of: ["memory", "equal_memory"],
      title: "memory: drag the arrow d, what is remembered",
      sliders: [["angle", "largest turn, in radians", 0, 1.57, 0.01]],
    },
  ];

  const presets = [
    ["agree", [[1.6, 0.9], [1.9, -0.2]]],
    ["conflict", [[2.2, 0.3], [-0.8, 0.7]]],
    ["one ten times longer", [[2.8, 0.8], [-0.2, 0.21]]],
    ["three tasks", [[2.1, 0.6], [-0.8, 1.1], [1.2, -0.8]]],
  ].map(([name, gradients]) => ({ name, gradients }));

  root.PlaygroundMethods = { methods, groups, presets };
})(globalThis);
