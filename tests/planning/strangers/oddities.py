"""Harder ones: matrices as bare parameters, stacks in unusual orders, weights that are made of other weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.planning.strangers.common import NEVER, LitNorm, Net, Stranger, free


class TransposedExperts(Net):
    """Expert stacks by output first, biases in two and three axes, a router that is a bare matrix."""

    def __init__(self, d: int = 16, n: int = 4) -> None:
        super().__init__()
        self.pick, self.shift, self.a, self.z = free(d, n), free(n), free(n, 2 * d, d), free(n, d, 2 * d)
        self.p, self.r, self.every = free(n, 2 * d), free(n, 1, d), free(n, 1)

    def forward(self, x: Tensor) -> Any:
        share = ((x @ self.pick).sigmoid() + self.shift).softmax(-1)
        up = torch.einsum("btd,efd->ebtf", x, self.a) + self.p[:, None, None]
        down = torch.einsum("ebtf,edf->ebtd", F.silu(up), self.z) + self.r[:, None]
        return torch.einsum("ebtd,bte->btd", down * self.every[:, None, None], share)


class BareRwkv(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.m1, self.m2, self.m3, self.fade, self.now = free(1, 1, d), free(1, 1, d), free(1, 1, d), free(d), free(d)
        self.w1, self.w2, self.w3, self.w4 = free(d, d), free(d, d), free(d, d), free(d, d)

    def forward(self, x: Tensor) -> Any:
        last = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        k, v, r = (x * m + last * (1 - m) for m in (self.m1, self.m2, self.m3))
        k, v, r = k @ self.w1, v @ self.w2, (r @ self.w3).sigmoid()
        a = b = torch.zeros(x.shape[0], x.shape[2])
        fade, out = torch.exp(-torch.exp(self.fade)), []
        for t in range(x.shape[1]):
            bonus = torch.exp(self.now + k[:, t])
            out.append((a + bonus * v[:, t]) / (b + bonus))
            a, b = fade * a + k[:, t].exp() * v[:, t], fade * b + k[:, t].exp()
        return (r * torch.stack(out, 1)) @ self.w4


class BareMamba(Net):
    def __init__(self, d: int = 16, n: int = 8) -> None:
        super().__init__()
        self.into, self.kernel, self.kernel_shift = free(d, 2 * d), free(d, 1, 4), free(d)
        self.picks, self.steps, self.bend = free(d, 2 * n + 1), free(1, d), free(d)
        self.rates, self.direct, self.back, self.n = free(d, n), free(d), free(d, d), n

    def forward(self, x: Tensor) -> Any:
        u, z = (x @ self.into).chunk(2, -1)
        u = F.silu(F.conv1d(u.mT, self.kernel, self.kernel_shift, padding=3, groups=u.shape[-1])[..., : x.shape[1]].mT)
        b, c, dt = torch.split(u @ self.picks, [self.n, self.n, 1], -1)
        dt = F.softplus(dt @ self.steps + self.bend)
        state, ys = torch.zeros(x.shape[0], x.shape[2], self.n), []
        for t in range(x.shape[1]):
            state = torch.exp(-dt[:, t, :, None] * self.rates.exp()) * state + (dt * u)[:, t, :, None] * b[:, t, None]
            ys.append((state * c[:, t, None]).sum(-1))
        return ((torch.stack(ys, 1) + self.direct * u) * F.silu(z)) @ self.back


class ConformerConvolution(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.ln, self.wide, self.deep = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1), nn.Conv1d(d, d, 5, padding=2, groups=d)
        self.bn, self.close, self.portion = nn.BatchNorm1d(d), nn.Conv1d(d, d, 1), free(1)

    def forward(self, x: Tensor) -> Any:
        y = F.glu(self.wide(self.ln(x).mT), 1)
        return x + self.portion * self.close(F.silu(self.bn(self.deep(y)))).mT


class Resampler(Net):
    """Learned queries and matrices, all bare; the queries never see the input before attention."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.asked, self.norm = free(5, d), LitNorm(d)
        self.wq, self.wk, self.wv, self.wo = free(d, d), free(d, d), free(d, d), free(d, d)

    def forward(self, x: Tensor) -> Any:
        q, x = self.norm(self.asked) @ self.wq, self.norm(x)
        y = F.scaled_dot_product_attention(q.expand(len(x), -1, -1), x @ self.wk, x @ self.wv)
        return y @ self.wo


class Critic(Net):
    """A discriminator: spectral norm, both generations of weight norm, equalised learning rates."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.one = parametrizations.spectral_norm(nn.Conv2d(3, d, 3, padding=1))
        self.two = parametrizations.weight_norm(nn.Conv2d(d, d, 3, padding=1))
        self.three, self.three_shift, self.slope = free(4, d), free(4), nn.PReLU()

    def forward(self, x: Tensor) -> Any:
        x = self.slope(self.two(self.slope(self.one(x)))).mean((2, 3))
        return F.linear(x, self.three * (2 / self.three.shape[1]) ** 0.5, self.three_shift)


class Turned(nn.Module):
    """A parametrization: the transpose of another layer's weight, plus one matrix of its own."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.other, self.own = [other], free(*other.weight.shape[::-1])

    def forward(self, ignored: Tensor) -> Tensor:
        return self.other[0].weight.T + self.own + 0.0 * ignored


class TiedAutoencoder(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(d, 6), nn.Linear(6, d)
        parametrize.register_parametrization(self.decode, "weight", Turned(self.encode))

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x).relu())


class VocabularyParallel(Net):
    """One rank's rows of the vocabulary as a bare table, masked, also used as the head."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.rows, self.first, self.norm, self.mlp = free(40, d), 10, LitNorm(d), nn.Linear(d, d, bias=False)

    def forward(self, tokens: Tensor) -> Any:
        elsewhere = (tokens < self.first) | (tokens >= self.first + len(self.rows))
        x = F.embedding((tokens - self.first).masked_fill(elsewhere, 0), self.rows)
        x = x.masked_fill(elsewhere[..., None], 0.0)
        return F.linear(self.norm(x + self.mlp(x)), self.rows)


class Magnitudes(Net):
    """DoRA: the norm of each row of an adapted matrix is a parameter of its own."""

    def __init__(self, d: int = 16, rank: int = 2) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B, self.m = nn.Linear(d, d), free(rank, d), free(d, rank), free(d)

    def forward(self, x: Tensor) -> Any:
        weight = self.base.weight + self.lora_B @ self.lora_A
        return F.linear(x, (self.m / weight.norm(dim=1))[:, None] * weight, self.base.bias)


class Splines(Net):
    """A Kolmogorov-Arnold layer: a matrix of curves, and scales of the curves that are a matrix too."""

    knots: Tensor

    def __init__(self, d: int = 8, out: int = 6, grid: int = 5) -> None:
        super().__init__()
        self.curves, self.straight = free(out, d, grid), free(out, d)
        self.register_buffer("knots", torch.linspace(-1, 1, grid))

    def forward(self, x: Tensor) -> Any:
        bumps = (-((x[..., None] - self.knots) ** 2)).exp()
        return torch.einsum("...dg,odg->...o", bumps, self.curves) + F.linear(F.silu(x), self.straight)


class FourierOperator(Net):
    def __init__(self, d: int = 8, modes: int = 3) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(d, d, modes, dtype=torch.cfloat))
        self.local, self.modes = nn.Conv1d(d, d, 1), modes

    def forward(self, x: Tensor) -> Any:
        waves = torch.fft.rfft(x.mT)[..., : self.modes]
        mixed = torch.einsum("bim,iom->bom", waves, self.spectrum)
        return F.gelu(torch.fft.irfft(mixed, n=x.shape[1]) + self.local(x.mT))


class GatedSpace(Net):
    """gMLP: mixes along time by a matrix, shifted by one number per place."""

    def __init__(self, d: int = 16, places: int = 9) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(d, 2 * d), nn.Linear(d, d), nn.LayerNorm(d)
        self.places, self.lifts = free(places, places), free(places, 1)

    def forward(self, x: Tensor) -> Any:
        u, v = F.gelu(self.up(x)).chunk(2, -1)
        return x + self.down(u * (self.places @ self.norm(v) + self.lifts))


class Glow(Net):
    """A flow: scales and shifts as logarithms, a mixing matrix by its LU factors."""

    lower: Tensor

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.shift, self.stretch, self.l, self.u, self.s = free(1, d), free(1, d), free(d, d), free(d, d), free(d)
        self.net = nn.Sequential(nn.Linear(d // 2, 16), nn.ReLU(), nn.Linear(16, d))
        self.register_buffer("lower", torch.tril(torch.ones(d, d), -1))

    def forward(self, x: Tensor) -> Any:
        x = (x + self.shift) * self.stretch.exp()
        weight = (self.l * self.lower + torch.eye(len(self.s))) @ (self.u * self.lower.T + torch.diag(self.s.exp()))
        a, b = (x @ weight).chunk(2, -1)
        scale, shift = self.net(a).chunk(2, -1)
        return torch.cat([a, (b + shift) * scale.sigmoid()], -1)


class Prototypes(Net):
    """A cosine classifier with a temperature, and a memory of keys and values that are chosen by likeness."""

    def __init__(self, d: int = 16, classes: int = 7) -> None:
        super().__init__()
        self.kinds, self.heat, self.margin = free(classes, d), free(), free(classes)
        self.keys, self.values = free(12, d), nn.EmbeddingBag(12, d, mode="sum")

    def forward(self, x: Tensor) -> Any:
        score, chosen = F.linear(x.mean(1), self.keys).topk(3)
        x = x.mean(1) + self.values(chosen, per_sample_weights=score.softmax(-1))
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.kinds, dim=-1)) * self.heat.exp() - self.margin


class Hyena(Net):
    """Long convolutions whose filter a small network makes of time, faded by learned rates."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.mix, self.out, self.direct = nn.Linear(d, 3 * d), nn.Linear(d, d), free(d)
        self.make = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, d, bias=False))
        self.frequency, self.rates = free(1, 3), free(1, 1, d)

    def forward(self, x: Tensor) -> Any:
        n = x.shape[1]
        time = torch.linspace(0, 1, n)[:, None]
        filters = self.make(torch.sin(self.frequency * time)) * torch.exp(-time * self.rates.abs())[0]
        q, k, v = self.mix(x).chunk(3, -1)
        y = torch.fft.irfft(torch.fft.rfft(k * v, 2 * n, dim=1) * torch.fft.rfft(filters, 2 * n, dim=0), 2 * n, dim=1)
        return self.out(q * (y[:, :n] + self.direct * v))


class ScalarMix(Net):
    """ELMo: layers weighed by a softmax over single numbers; and a gate for each head."""

    def __init__(self, d: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(3)])
        self.shares = nn.ParameterList([free(1) for _ in range(3)])
        self.total, self.open, self.heads = free(1), free(1, heads, 1, 1), heads

    def forward(self, x: Tensor) -> Any:
        states = []
        for layer in self.layers:
            x = layer(x).tanh()
            states.append(x)
        shares = torch.cat([*self.shares]).softmax(0)
        mixed = self.total * sum(share * state for share, state in zip(shares, states, strict=True))
        return mixed.unflatten(-1, (self.heads, -1)).transpose(1, 2) * torch.sigmoid(self.open)


class BlockRecurrence(Net):
    """A recurrent cell with one small matrix per head, as a stack, and matrices in a stack of three."""

    def __init__(self, heads: int = 4, size: int = 4) -> None:
        super().__init__()
        self.three, self.three_shift = free(3, heads * size, heads * size), free(3, 1, heads * size)
        self.across, self.lift, self.heads = free(heads, size, size), free(heads, 1, size), heads

    def forward(self, x: Tensor) -> Any:
        i, f, z = torch.einsum("btd,gdh->gbth", x, self.three) + self.three_shift[:, None]
        h = torch.zeros(self.heads, x.shape[0], x.shape[2] // self.heads)
        for t in range(x.shape[1]):
            own = torch.baddbmm(self.lift, h, self.across).transpose(0, 1).flatten(1)
            state = f[:, t].sigmoid() * own + i[:, t].sigmoid() * (z[:, t] + own).tanh()
            h = state.unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return h


STRANGE_ODDITIES: dict[str, Stranger] = {
    "TransposedExperts": Stranger(TransposedExperts, r"^(shift|p|r|every)$"),
    "BareRwkv": Stranger(BareRwkv, r"^(m\d|fade|now)$"),
    "BareMamba": Stranger(BareMamba, r"kernel_shift|bend|rates|direct", r"steps"),
    "ConformerConvolution": Stranger(ConformerConvolution, r"bias|ln|bn|portion"),
    "Resampler": Stranger(Resampler, NEVER, r"asked"),
    "Critic": Stranger(Critic, r"bias|original0|shift|slope", r"one\.param"),
    "TiedAutoencoder": Stranger(TiedAutoencoder, r"bias", r"original"),
    "VocabularyParallel": Stranger(VocabularyParallel, NEVER),
    "Magnitudes": Stranger(Magnitudes, r"bias|^m$"),
    "Splines": Stranger(Splines, NEVER),
    "FourierOperator": Stranger(FourierOperator, r"bias"),
    "GatedSpace": Stranger(GatedSpace, NEVER + r"|lifts"),
    "Glow": Stranger(Glow, r"bias|shift|stretch|^s$"),
    "Prototypes": Stranger(Prototypes, r"heat|margin"),
    "Hyena": Stranger(Hyena, r"bias|direct|frequency|rates"),
    "ScalarMix": Stranger(ScalarMix, r"bias|shares|total|open"),
    "BlockRecurrence": Stranger(BlockRecurrence, r"shift|lift"),
}
