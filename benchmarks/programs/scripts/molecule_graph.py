"""Predict a property of molecules from their graphs, with attention biased by the distance of the atoms."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attnwatch import TrainingCheckup

PAD = 0
ATOMS = 8
FAR = 4  # distances from here on count as one
REACH = 3  # atoms further away don't see each other


def molecule(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return atoms, bonds and a property that sums over the atoms and over the kinds of atoms that are bonded."""
    size = int(torch.randint(6, 15, (1,), generator=generator))
    atoms = torch.randint(1, ATOMS + 1, (size,), generator=generator)
    bonds = torch.zeros(size, size, dtype=torch.bool)
    for atom in range(1, size):
        other = int(torch.randint(max(0, atom - 3), atom, (1,), generator=generator))
        bonds[atom, other] = bonds[other, atom] = True
    polar = atoms <= 2
    between = (bonds & polar[:, None] & ~polar[None, :]).sum() / 2
    return atoms, bonds, 0.2 * (atoms.float() - 4.5).mean() + 0.5 * between - 0.1 * size


def distances(bonds: Tensor) -> Tensor:
    """Return the number of bonds between each two atoms, at most FAR."""
    hops = torch.full(bonds.shape, FAR)
    reached = torch.eye(len(bonds), dtype=torch.bool)
    for distance in range(FAR):
        hops = torch.where(reached & (hops > distance), distance, hops)
        reached = reached | ((reached.float() @ bonds.float()) > 0)
    return hops


def collate(molecules: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    size = max(len(atoms) for atoms, _, _ in molecules)
    atoms = torch.full((len(molecules), size), PAD)
    hops = torch.full((len(molecules), size, size), FAR)
    for row, (own_atoms, own_bonds, _) in enumerate(molecules):
        atoms[row, : len(own_atoms)] = own_atoms
        hops[row, : len(own_atoms), : len(own_atoms)] = distances(own_bonds)
    return atoms, hops, torch.stack([target for _, _, target in molecules])


class GraphLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.bias = nn.Embedding(FAR + 1, heads)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, hops: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (f(self.norm1(x)).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        logits = torch.einsum("bihd,bjhd->bijh", q, k) * self.scale + self.bias(hops)
        logits = logits.masked_fill(~visible.unsqueeze(-1), torch.finfo(logits.dtype).min)
        weights = torch.softmax(logits, dim=2)
        x = x + self.to_out(torch.einsum("bijh,bjhd->bihd", weights, v).flatten(-2))
        return x + self.mlp(self.norm2(x))


class GraphTransformer(nn.Module):
    def __init__(self, width: int = 48, heads: int = 4, depth: int = 3):
        super().__init__()
        self.atoms = nn.Embedding(ATOMS + 1, width, padding_idx=PAD)
        self.layers = nn.ModuleList([GraphLayer(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, 1)

    def forward(self, atoms: Tensor, hops: Tensor) -> Tensor:
        is_atom = atoms != PAD
        visible = (hops <= REACH) & is_atom[:, None, :]
        x = self.atoms(atoms)
        for layer in self.layers:
            x = layer(x, hops, visible)
        x = self.norm(x) * is_atom.unsqueeze(-1)
        return self.readout(x.sum(dim=1) / 10).squeeze(-1)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(9)
    generator = torch.Generator().manual_seed(0)
    molecules = [molecule(generator) for _ in range(1500)]
    targets = torch.stack([target for _, _, target in molecules])
    mean, scale = targets.mean(), targets.std()
    loader = DataLoader(molecules, batch_size=32, shuffle=True, collate_fn=collate, drop_last=True)
    model = GraphTransformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=500)
    objective = nn.SmoothL1Loss()
    done = 0
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        while done < steps:
            for atoms, hops, target in loader:
                with checkup.step(done):
                    prediction = model(atoms, hops)
                    loss = objective(prediction, (target - mean) / scale)
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=2.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                if done % 20 == 0:
                    print(done, round(loss.item(), 4))
                done += 1
                if done == steps:
                    break
    return checkup
