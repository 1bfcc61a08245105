"""MuJoCo's swimmer, many at once: gymnasium's Swimmer-v5 with the interface of `collage.common.environments`."""

import numpy as np
import torch

from collage.common.environments import endless


class Swimmer:
    """Three links in a viscous fluid that are to swim along the x axis by turning their two joints.

    State (n, 11) in float64: time, positions (x and y of the head, its angle, the two joints) and their
    velocities; a step is four of MuJoCo's, 0.04 s. observe: angles and all velocities (n, 8). actions
    (n, 2) in [-1, 1]. reward: velocity along x (m/s) less 1e-4 |action|^2. It never ends by itself.

    Needs gymnasium and mujoco, which ships the swimmer.
    """

    observations, actions = 8, 2

    def __init__(self):
        import gymnasium
        import mujoco
        from mujoco.rollout import Rollout

        self.frames = (env := gymnasium.make("Swimmer-v5").unwrapped).frame_skip
        self.model, self.dt = env.model, env.dt
        self.data, self.roll = mujoco.MjData(self.model), Rollout(nthread=0)

    def reset(self, n, generator):
        state = torch.zeros(n, 11, dtype=torch.double, device=generator.device)
        state[:, 1:] = 0.2 * torch.rand(n, 10, dtype=torch.double, generator=generator) - 0.1
        return state

    def observe(self, state):
        return state[:, 3:].float()

    def step(self, state, action):
        action = action.clamp(-1, 1).double()
        control = action[:, None].expand(-1, self.frames, -1)
        states, _ = self.roll.rollout(self.model, self.data, np.ascontiguousarray(state.cpu()),
                                      np.ascontiguousarray(control.cpu()))  # fmt: skip
        after = torch.from_numpy(states[:, -1].copy()).to(state.device)
        reward = (after[:, 1] - state[:, 1]) / self.dt - 1e-4 * action.square().sum(1)
        return endless(after, reward.float())
