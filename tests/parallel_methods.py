"Methods for tests of several processes, in a module of their own: a process that starts anew must be able to import them."
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from poseprojects.train.engine import Scheduled, TrainingStopped
from poseprojects.train.schedules import Schedule


class Lifter(nn.Module):
    "A small lifter with everything that mixes rows or draws numbers for them: batch norm, dropout, a random turn and noise."
    def __init__(self, width=48, joints=17):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2 * joints, width), nn.BatchNorm1d(width, eps=1e-3, momentum=0.01), nn.ReLU(), nn.Dropout(0.25), nn.Linear(width, width),
                                     nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3 * joints))
    def forward(self, pose_2d):
        centred = pose_2d - pose_2d[:, :1]
        return self.network((centred / centred.norm(dim=-1).mean(1)[:, None, None]).flatten(1)).unflatten(1, (-1, 3))
    def turned(self, batch):
        "2D turned in the image by an angle and moved by noise, 3D by the same angle."
        angle = (batch.rand() - 0.5) * 0.6
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
        target = torch.cat([batch.target[..., :2] @ rotation.mT, batch.target[..., 2:]], -1)
        return batch.pose_2d @ rotation.mT + batch.randn(batch.pose_2d.shape[1], 2), target
    def optimizers(self, plan): return {"lifter": Scheduled(torch.optim.Adam(self.parameters(), plan.learning_rate), plan.schedule)}
    def step(self, batch, optimizers):
        pose_2d, target = self.turned(batch)
        loss = F.mse_loss(self(pose_2d), target)
        optimizers["lifter"].zero_grad(); loss.backward(); optimizers["lifter"].step()
        return {"mse": loss}
    def predict(self, batch): return self(batch.pose_2d)[:, None]


class Adversarial(Lifter):
    "A lifter and a critic of 3D poses from another stream: two optimisers, the critic steps two times out of three and reports then only."
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(51, 32), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    def optimizers(self, plan):
        return {"lifter": Scheduled(torch.optim.Adam(self.network.parameters(), plan.learning_rate), plan.schedule),
                "critic": Scheduled(torch.optim.RMSprop(self.critic.parameters(), plan.learning_rate / 2), Schedule("epochs", gamma=0.5))}
    def step(self, batch, optimizers):
        pose_2d, target = self.turned(batch)
        fake, real = self(pose_2d), batch.others["poses"].target
        losses = {}
        if batch.clock.step % 3:
            losses["critic"] = self.critic(fake.detach().flatten(1)).mean() - self.critic(real.flatten(1)).mean()
            optimizers["critic"].zero_grad(); losses["critic"].backward(); optimizers["critic"].step()
        losses["lifter"] = F.mse_loss(fake, target) - 1e-3 * self.critic(fake.flatten(1)).mean()
        optimizers["lifter"].zero_grad(); losses["lifter"].backward(); optimizers["lifter"].step()
        return losses


class Interrupted(Lifter):
    "Does something once before a step, in one process: `what` is 'kill', 'raise', 'nan' or 'hang'. It leaves its process number in a file."
    def __init__(self, folder, what, at=50, rank=1):
        super().__init__()
        self.folder, self.what, self.at, self.rank = str(folder), what, at, rank
    def step(self, batch, optimizers):
        rank = int(os.environ.get("RANK", 0))
        Path(self.folder, f"pid-{os.getpid()}").touch()
        first = batch.clock.step == self.at and rank == self.rank and not Path(self.folder, "done").exists()
        if first: Path(self.folder, "done").touch()
        if first and self.what == "kill": os.kill(os.getpid(), 9)
        if first and self.what == "raise": raise KeyError("something of the method itself")
        losses = super().step(batch, optimizers)
        if first and self.what == "nan": losses["mse"] = losses["mse"] * float("nan")
        return losses


def exchange(shard, device, rows):
    "What the parts of a parallel run give in one of its processes, each on its rows of what all have: for a comparison with one process."
    from poseprojects.train.parallel import share_gradients, share_layers
    mine, found = shard.rows(rows), {}
    for name, layer, shape in LAYERS:
        layer = share_layers(layer(), shard)
        x, g = inputs(rows, shape)
        part = x[mine].clone().requires_grad_()
        torch.manual_seed(7)
        y = layer(part)
        (y * g[mine]).sum().backward()
        sums = [distributed_sum(shard, p.grad) for p in layer.parameters()]
        found[name] = [y.detach().tolist(), part.grad.tolist(), [s.tolist() for s in sums], [b.tolist() for b in layer.buffers()], torch.rand(2).tolist()]
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    optimizer = torch.optim.SGD(parameters[:3], 1.)
    share_gradients(optimizer, shard)
    parameters[0].grad = torch.full((2,), float(shard.rank))
    if shard.rank == 1: parameters[1].grad = torch.ones(2)
    parameters[3].grad = torch.full((2,), float(shard.rank)) # of no optimiser
    optimizer.step()
    found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in parameters]
    found["told"] = shard.told(b"from %d" % shard.rank, source=1).decode()
    found["every"] = [shard.every(True), shard.every(shard.rank != 1)]
    return found

def distributed_sum(shard, values): return shard.gathered(values).sum(0)

def inputs(rows, shape):
    "Input and gradient of a layer for the whole batch; far from zero, where careless sums lose digits."
    torch.manual_seed(3)
    return 20 + torch.randn(rows, *shape), torch.randn(rows, *shape)

LAYERS = [("rows", lambda: nn.Sequential(nn.BatchNorm1d(4, eps=1e-3), nn.Dropout(0.4)), (4,)), ("frames", lambda: nn.BatchNorm1d(4, momentum=None), (4, 5)),
          ("images", lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Dropout2d(0.3)), (4, 3, 5)), ("in place", lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5, inplace=True)), (4, 3, 5))]

class Sunk(TrainingStopped): "A method's own reason to stop."

class Together(nn.Module):
    "Several methods that take their steps one after another: one start of processes shows them all."
    def __init__(self, **methods):
        super().__init__()
        self.methods = nn.ModuleDict(methods)
    def optimizers(self, plan): return {f"{name}/{part}": scheduled for name, method in self.methods.items() for part, scheduled in method.optimizers(plan).items()}
    def step(self, batch, optimizers):
        own = lambda name: {key.removeprefix(f"{name}/"): optimizer for key, optimizer in optimizers.items() if key.startswith(f"{name}/")}
        return {f"{name}/{part}": loss for name, method in self.methods.items() for part, loss in method.step(batch, own(name)).items()}

def perish(shard, device):
    "One process kills itself, whenever it is started; the other one waits for it."
    if shard.rank == 1: os.kill(os.getpid(), 9)
    shard.mean_(torch.zeros(1))
