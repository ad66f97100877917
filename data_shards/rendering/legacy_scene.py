"""Procedural indoor and outdoor scenes as one triangle soup (numpy only). z up, metres."""
import numpy as np
from data_shards.rendering.legacy_tex import f32, fractal, hsv, rcol, lerp


# ---------------------------------------------------------------- primitives: (P,N,UV) with shapes (k,3,3),(k,3,3),(k,3,2); UV in metres
def _quads(P, N, UV):
    t = [0, 1, 2], [0, 2, 3]
    return tuple(np.concatenate([a[:, i] for i in t]).astype(f32) for a in (P, N, UV))


def cat(*parts):
    return tuple(np.concatenate([p[i] for p in parts]) for i in range(3))


def quad(o, a, b, uv0=(0, 0)):
    o, a, b = (np.asarray(x, float) for x in (o, a, b)); n = np.cross(a, b); n /= np.linalg.norm(n)
    P = np.stack([o, o + a, o + a + b, o + b])[None]; la, lb = np.linalg.norm(a), np.linalg.norm(b)
    UV = np.array([[0, 0], [la, 0], [la, lb], [0, lb]])[None] + uv0
    return _quads(P, np.broadcast_to(n, P.shape), UV)


def grid(P, UV, N=None, flip=False):
    """Smooth surface over a grid of points P (a,b,3)."""
    if N is None:
        N = np.cross(np.gradient(P, axis=0), np.gradient(P, axis=1)); N /= np.linalg.norm(N, axis=-1, keepdims=True) + 1e-9
    if flip: N = -N
    q = lambda X: np.stack([X[:-1, :-1], X[1:, :-1], X[1:, 1:], X[:-1, 1:]], 2).reshape(-1, 4, X.shape[-1])
    return _quads(q(P), q(N), q(UV))


_BOX = {}


def _box_template(n):
    """Corner signs, unit normals and uv axes of a box whose edges are rounded with n steps (n=0: sharp)."""
    if n not in _BOX:
        S, Q, ax_, out = [], [], [], []
        for ax in range(3):
            b, c = [(1, 2), (2, 0), (0, 1)][ax]
            for s in (-1, 1):
                k = np.cos(np.linspace(0, np.pi / 2, n + 1)) if n else np.zeros(1); sg = np.concatenate([-np.ones(len(k)), np.ones(len(k))]); e = np.concatenate([-k, k[::-1]])
                i, j = np.meshgrid(np.arange(len(e)), np.arange(len(e)), indexing='ij'); sv = np.zeros(i.shape + (3,)); nv = np.zeros_like(sv); sv[..., ax] = s; nv[..., ax] = s; sv[..., b], sv[..., c] = sg[i], sg[j]; nv[..., b], nv[..., c] = e[i], e[j]
                nv /= np.linalg.norm(nv, axis=-1, keepdims=True); sv, nv, _ = grid(sv, np.zeros(i.shape + (2,)), nv); S.append(sv); Q.append(nv); u, v, su, sw = [(1, 2, 1, -1), (0, 2, 1, -1), (0, 1, 1, 1)][ax]; out.append(np.tile(np.array([u, v]), (len(sv), 3, 1))); ax_.append(np.tile(np.array([su, sw], f32), (len(sv), 3, 1)))
        _BOX[n] = tuple(np.concatenate(x) for x in (S, Q, out, ax_))
    return _BOX[n]


def box(sx, sy, sz, r=0.0, n=2):
    """Box centred in x,y with its base at z=0; r rounds the edges."""
    h = np.array([sx, sy, sz], f32) / 2; r = min(r, float(h.min()) * .98); S, N, A, sg = _box_template(n if r > 0 else 0); P = S * (h - f32(r)) + N * f32(r) if r > 0 else S * h
    UV = np.take_along_axis(P, A, 2) * sg + f32(10); P = P + np.array([0, 0, h[2]], f32)
    return P, N, UV


def lathe(r, z, n=20):
    r, z = np.asarray(r, float), np.asarray(z, float); a = np.linspace(0, 2 * np.pi, n + 1)
    P = np.stack([r[:, None] * np.cos(a), r[:, None] * np.sin(a), np.broadcast_to(z[:, None], (len(r), n + 1))], -1)
    dr, dz = np.gradient(r), np.gradient(z); l = np.hypot(dr, dz) + 1e-9
    N = np.stack([(dz / l)[:, None] * np.cos(a), (dz / l)[:, None] * np.sin(a), np.broadcast_to((-dr / l)[:, None], (len(r), n + 1))], -1)
    s = np.concatenate([[0], np.cumsum(np.hypot(np.diff(r), np.diff(z)))])
    UV = np.stack(np.broadcast_arrays(a * max(r.max(), .02), -s[:, None]), -1)
    return grid(P, UV, N)


def cyl(r, h, n=16, r2=None, cap=True):
    r2 = r if r2 is None else r2
    parts = [lathe([r, r2], [0, h], n)]
    if cap: parts += [disc(r2, h, n, 1), disc(r, 0, n, -1)]
    return cat(*parts)


def disc(r, z, n=16, s=1):
    a = np.linspace(0, 2 * np.pi, n + 1); c = np.stack([np.cos(a) * r, np.sin(a) * r, 0 * a + z], -1)
    P = np.stack([np.broadcast_to([0, 0, z], (n, 3)), c[:-1], c[1:]], 1)
    return P.astype(f32), np.broadcast_to(np.array([0, 0, s], f32), P.shape).copy(), (P[..., :2] + 5).astype(f32)


def ball(rx, ry, rz, n=16, e1=1., e2=1., noise=None):
    """Superquadric ellipsoid (e=1 sphere, e<1 boxy), optionally displaced; centred."""
    v = np.linspace(-np.pi / 2, np.pi / 2, n // 2 + 1)[:, None]; u = np.linspace(0, 2 * np.pi, n + 1)[None]
    pw = lambda x, e: np.sign(x) * np.abs(x) ** e
    x, y, z = np.broadcast_arrays(pw(np.cos(v), e1) * pw(np.cos(u), e2), pw(np.cos(v), e1) * pw(np.sin(u), e2), pw(np.sin(v), e1))
    P = np.stack([x, y, z], -1); UV = np.stack(np.broadcast_arrays(u * max(rx, ry), -v * rz), -1)
    if noise is not None:
        k = noise.shape[0]; d = noise[(np.arange(n // 2 + 1)[:, None] * k // n), (np.arange(n + 1) % n)[None] * k // n].copy(); d[0] = d[0].mean(); d[-1] = d[-1].mean()
        P = P * (1 + d[..., None])
    P = P * [rx, ry, rz]
    return grid(P, UV, flip=True) if noise is not None or e1 != 1 or e2 != 1 else grid(P, UV, (P / np.array([rx, ry, rz]) ** 2) / np.linalg.norm(P / np.array([rx, ry, rz]) ** 2, axis=-1, keepdims=True))


def tube(path, r, n=8):
    path = np.asarray(path, float); t = np.gradient(path, axis=0); t /= np.linalg.norm(t, axis=1, keepdims=True) + 1e-9
    up = np.where(np.abs(t[:, 2:3]) > .9, [[1., 0, 0]], [[0, 0, 1.]]); b = np.cross(t, up); b /= np.linalg.norm(b, axis=1, keepdims=True) + 1e-9; c = np.cross(b, t)
    a = np.linspace(0, 2 * np.pi, n + 1); N = b[:, None] * np.cos(a)[None, :, None] + c[:, None] * np.sin(a)[None, :, None]
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    rr = np.broadcast_to(np.asarray(r, float), len(path))[:, None, None]
    return grid(path[:, None] + rr * N, np.stack(np.broadcast_arrays(a * rr.max(), s[:, None]), -1), N)


def torus(R, r, n=24, m=10):
    a = np.linspace(0, 2 * np.pi, n + 1)[:, None]; b = np.linspace(0, 2 * np.pi, m + 1)[None]
    P = np.stack(np.broadcast_arrays((R + r * np.cos(b)) * np.cos(a), (R + r * np.cos(b)) * np.sin(a), r * np.sin(b)), -1)
    N = np.stack(np.broadcast_arrays(np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)), -1)
    return grid(P, np.stack(np.broadcast_arrays(a * R, b * r), -1), N)


def leaves(rng, n, radii, size, shell=.55):
    d = rng.normal(size=(n, 3)); d /= np.linalg.norm(d, axis=1, keepdims=True)
    c = d * (shell + (1 - shell) * rng.random((n, 1))) * radii * (1 + .25 * np.sin(d[:, :1] * 5 + d[:, 1:2] * 7 + d[:, 2:] * 6))
    q = rng.normal(size=(n, 3)); q -= (q * d).sum(1, keepdims=True) * d * .6; q /= np.linalg.norm(q, axis=1, keepdims=True)
    w = np.cross(q, d + .7 * rng.normal(size=(n, 3))); w /= np.linalg.norm(w, axis=1, keepdims=True)
    s = size * rng.uniform(.6, 1.4, (n, 1)); a, b = q * s, w * s * .55
    P = np.stack([c - a, c - b, c + a, c + b], 1); N = np.broadcast_to((d * .8 + np.cross(q, w) * .4)[:, None], P.shape).copy(); N /= np.linalg.norm(N, axis=-1, keepdims=True)
    UV = np.stack([[0, 0], [.2, 0], [.2, .2], [0, .2]])[None] + rng.random((n, 1, 2)) * 2
    return _quads(P, N, UV)


def rotz(a): c, s = np.cos(a), np.sin(a); return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
def rotx(a): c, s = np.cos(a), np.sin(a); return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
def roty(a): c, s = np.cos(a), np.sin(a); return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rand_rot(rng):
    q = rng.normal(size=4); w, x, y, z = q / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


# ---------------------------------------------------------------- scene container
class Scene:
    def __init__(self, rng, bank):
        self.rng, self.bank, self.kind = rng, bank, ''
        self.parts, self.mats, self.lights = [], [], []
        self.sun_dir, self.sun, self.sky = None, np.zeros(3, f32), None
        self.portals, self.cams, self.haze = [], None, 0.

    def mat(self, kind=None, tint=None, scale=1., rough=None, spec=.04, fit=None, emit=None, metal=0., jit=.12, rot=None):
        """Material. kind: texture kind or list of kinds; scale multiplies metres per repeat; fit=(w,h): one repeat spans w x h metres."""
        r = self.rng; b = self.bank
        if kind is None: kind = list(b.by_kind)
        if isinstance(kind, (list, tuple)): kind = kind[int(r.integers(len(kind)))]
        t = int(r.choice(b.by_kind[kind])); t3 = (1 + r.normal(0, jit, 3) * .5 + r.normal(0, jit)) if tint is None else np.asarray(tint)
        sc = (b.scale[t] * scale * r.uniform(.8, 1.25),) * 2 if fit is None else fit
        rot = (r.random() < .5 if fit is None and kind not in ('brick', 'paving', 'facade', 'bark') else 0) if rot is None else rot
        if kind == 'metal': metal = .8
        self.mats.append((t, sc[0], sc[1], *np.clip(t3, .05, 2.), -1. if rough is None else rough, spec, metal, *((0, 0, 0) if emit is None else emit), *(r.random(2) if fit is None else (0, 0)), float(rot)))
        return len(self.mats) - 1

    def emitter(self, rad): return self.mat('paint', emit=rad, tint=(.8, .8, .8))

    def add(self, prim, m, t=(0, 0, 0), R=None, s=None):
        P, N, U = prim
        if s is not None: P = P * np.asarray(s, f32)
        if R is not None: R = np.asarray(R, f32); P = P @ R.T; N = N @ R.T
        self.parts.append((P + np.asarray(t, f32), N, U, np.full(len(P), m, np.int32)))

    def finish(self):
        self.P, self.N, self.UV = (np.ascontiguousarray(np.concatenate([p[i] for p in self.parts]), f32) for i in range(3))
        self.fm = np.concatenate([p[3] for p in self.parts]); self.parts = None
        M = np.array(self.mats, f32); self.M = M; self.m_tex = M[:, 0].astype(np.int32)
        e1, e2 = self.P[:, 1] - self.P[:, 0], self.P[:, 2] - self.P[:, 0]
        g = np.cross(e1, e2); l = np.linalg.norm(g, axis=1); keep = l > 1e-9
        if not keep.all():
            self.P, self.N, self.UV, self.fm, e1, e2, g, l = (x[keep] for x in (self.P, self.N, self.UV, self.fm, e1, e2, g, l))
        self.Ng = g / l[:, None]
        # tangents dP/du, dP/dv
        d1, d2 = self.UV[:, 1] - self.UV[:, 0], self.UV[:, 2] - self.UV[:, 0]; det = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]; det = np.where(np.abs(det) < 1e-12, 1e-12, det)
        T = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) / det[:, None]; self.T = (T / (np.linalg.norm(T, axis=1, keepdims=True) + 1e-12)).astype(f32)
        B = (e2 * d1[:, :1] - e1 * d2[:, :1]) / det[:, None]; self.B = (B / (np.linalg.norm(B, axis=1, keepdims=True) + 1e-12)).astype(f32)
        # mean albedo per material for bounced light
        self.m_alb = np.clip(self.bank.avg[self.m_tex] * M[:, 3:6], 0, .95).astype(f32)
        return self


# ---------------------------------------------------------------- sky
class Sky:
    """Gradient + sun glow + fractal clouds; radiance for directions (n,3)."""

    def __init__(self, rng, sun_dir, overcast, level=1.):
        self.sun = np.asarray(sun_dir, f32); self.level = level; el = max(self.sun[2], 0.05)
        warm = np.exp(-el * 5)
        self.zen = lerp(hsv(.6 + rng.normal(0, .015), rng.uniform(.45, .75), 1.) * .42, hsv(.6, .06, .55), overcast)
        self.hor = lerp(lerp(hsv(.57, .25, .75), hsv(.07, .35, .8), warm), hsv(.6, .04, .7), overcast)
        self.tex = fractal(rng, beta=rng.uniform(1.3, 1.9)); self.cov = rng.uniform(.35, .75) if overcast < .9 else .1; self.ccol = lerp(hsv(.08, .25 * warm, 1.), hsv(.6, .03, .85), overcast) * rng.uniform(.7, 1.05)
        self.csc = rng.uniform(.03, .12); self.coff = rng.random(2); self.glow = lerp(1., .2, overcast)
        self.overcast = overcast

    def __call__(self, d, clouds=True):
        z = d[:, 2]; t = np.clip(1 - np.maximum(z, 0), 0, 1) ** 4
        c = self.zen + (self.hor - self.zen) * t[:, None]
        if clouds:
            k = 1 / np.maximum(z, .03); n = self.tex.shape[0]
            x = ((d[:, 0] * k * self.csc + self.coff[0]) * n).astype(np.int32) % n; y = ((d[:, 1] * k * self.csc + self.coff[1]) * n).astype(np.int32) % n
            m = np.clip((self.tex[y, x] - self.cov) * 5, 0, 1) * np.clip(z * 8, 0, 1); c = c + (self.ccol - c) * (m * .85)[:, None]
        cs = np.clip(d @ self.sun, 0, 1); c = c * (1 + self.glow * (.6 * cs ** 8 + 2.5 * cs ** 64))[:, None]
        g = z < 0  # below the horizon: dull ground
        c = np.where(g[:, None], self.hor * .35, c)
        return (c * self.level).astype(f32)


def sun_direction(rng, lo=8, hi=65):
    el, az = np.deg2rad(rng.uniform(lo, hi)), rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)])


# ---------------------------------------------------------------- furniture (local frame: front = -y, base z=0). Each returns footprint (w,d) and height
WOODY = ['wood', 'wood', 'paint', 'planks', 'metal', 'marble', 'parquet']; CLOTH = ['weave', 'plaid', 'leather', 'carpet', 'stripes', 'dots', 'paint']; ANY = None


class Placer:
    def __init__(self, s, R, t): self.s, self.R, self.t = s, R, np.asarray(t, float)
    def __call__(self, prim, m, t=(0, 0, 0), R=None, sc=None):
        R2 = self.R if R is None else self.R @ R
        self.s.add(prim, m, self.t + self.R @ np.asarray(t, float), R2, sc)


def f_table(s, p, w, d, h):
    r = s.rng; m = s.mat(WOODY); m2 = m if r.random() < .6 else s.mat(['metal', 'paint', 'wood']); th = r.uniform(.02, .06)
    rd = r.random() < .25
    if rd: p(cyl(min(w, d) / 2, th, 28), m, (0, 0, h - th)); p(cyl(.04, h - th, 12), m2); p(cyl(min(w, d) * .28, .03, 20), m2)
    else:
        p(box(w, d, th, .008, 1), m, (0, 0, h - th)); l = r.uniform(.03, .07)
        for sx in (-1, 1):
            for sy in (-1, 1): p(box(l, l, h - th), m2, (sx * (w / 2 - l), sy * (d / 2 - l), 0))
    for _ in range(int(r.integers(1, 6))): small_item(s, p, r.uniform(-w, w) * (.28 if rd else .4), r.uniform(-d, d) * (.28 if rd else .38), h)

def f_chair(s, p, w, d, h):
    r = s.rng; m = s.mat(WOODY); m2 = s.mat(CLOTH) if r.random() < .6 else m; sh = r.uniform(.42, .48); l = r.uniform(.025, .045)
    p(box(w, d, .05, .015, 1), m2, (0, 0, sh))
    for sx in (-1, 1):
        for sy in (-1, 1): p(box(l, l, sh), m, (sx * (w / 2 - l), sy * (d / 2 - l), 0))
        p(box(l, l, h - sh), m, (sx * (w / 2 - l), d / 2 - l, sh))
    if r.random() < .5: p(box(w, .03, (h - sh) * .6, .012, 1), m2, (0, d / 2 - l, sh + (h - sh) * .4))
    else:
        for k in range(int(r.integers(2, 5))): p(box(w, .02, .05), m, (0, d / 2 - l, sh + (h - sh) * (.3 + .2 * k)))

def f_shelf(s, p, w, d, h):
    r = s.rng; m = s.mat(WOODY); th = .025; n = int(r.integers(2, 6)); back = s.mat(WOODY) if r.random() < .5 else m
    for sx in (-1, 1): p(box(th, d, h), m, (sx * (w - th) / 2, 0, 0))
    if r.random() < .8: p(box(w, .012, h), back, (0, d / 2, 0))
    for k in range(n + 1):
        z = k * (h - th) / n; p(box(w - th, d, th), m, (0, 0, z)); gap = (h - th) / n - th
        if k == n: 
            for _ in range(int(r.integers(0, 3))): small_item(s, p, r.uniform(-.4, .4) * w, 0, h)
            break
        if r.random() < .6:
            x = -w / 2 + .04; books = [s.mat(['paint', 'print', 'leather', 'weave'], fit=(.2, .3)) for _ in range(4)]
            while x < w / 2 - .06 and r.random() < .96:
                bw, bh = r.uniform(.015, .05), gap * r.uniform(.55, .95); p(box(bw, d * r.uniform(.5, .8), bh), books[int(r.integers(4))], (x + bw / 2, -d * .05, z + th)); x += bw + (r.uniform(.02, .2) if r.random() < .08 else .001)
        else:
            for _ in range(int(r.integers(0, 4))): small_item(s, p, r.uniform(-.4, .4) * w, r.uniform(-.1, .1) * d, z + th, hmax=gap * .9)

def f_cabinet(s, p, w, d, h):
    r = s.rng; m = s.mat(WOODY); m2 = m if r.random() < .5 else s.mat(WOODY); k = s.mat(['metal', 'paint']); nx, nz = int(r.integers(1, 4)), int(r.integers(1, 5)); f = r.uniform(.0, .12)
    p(box(w, d, h - f, .006, 1), m, (0, 0, f)); p(box(w * .96, d * .9, f + .01), k)
    for i in range(nx):
        for j in range(nz):
            dw, dh = w / nx, (h - f) / nz; p(box(dw - .012, .02, dh - .012, .006, 1), m2, (-w / 2 + dw * (i + .5), -d / 2 - .008, f + dh * j + .006))
            p(box(min(.12, dw * .4), .02, .012), k, (-w / 2 + dw * (i + .5), -d / 2 - .03, f + dh * (j + .75)))
    for _ in range(int(r.integers(0, 5))): small_item(s, p, r.uniform(-.4, .4) * w, r.uniform(-.2, .2) * d, h)

def f_sofa(s, p, w, d, h):
    r = s.rng; m = s.mat(CLOTH); m2 = m if r.random() < .6 else s.mat(CLOTH); a = r.uniform(.12, .25); sh = r.uniform(.36, .46); n = max(1, round((w - 2 * a) / .7))
    p(box(w, d * .95, sh * .6, .03), m, (0, 0, .05)); p(box(w, .22, h, .06), m, (0, d / 2 - .11, .05))
    for sx in (-1, 1): p(box(a, d, sh + .18, .05), m, (sx * (w - a) / 2, 0, .05))
    for i in range(n):
        x = -w / 2 + a + (w - 2 * a) / n * (i + .5); p(box((w - 2 * a) / n - .01, d - .25, sh * .45, .06), m2, (x, -.1, sh * .6)); p(box((w - 2 * a) / n - .02, .16, h - sh, .07), m2, (x, d / 2 - .28, sh), rotx(-.15))
    for _ in range(int(r.integers(0, 4))): p(ball(.22, .08, .2, 14, .5, .6), s.mat(CLOTH), (r.uniform(-.35, .35) * w, d * .1, sh + .22), rotz(r.normal(0, .3)) @ rotx(-.3 + r.normal(0, .2)))

def f_bed(s, p, w, d, h):
    r = s.rng; m = s.mat(WOODY); c = s.mat(CLOTH); sh = s.mat(['weave', 'paint', 'stripes'])
    p(box(w, d, .28, .02), m, (0, 0, .05)); p(box(w * .97, d * .97, .22, .06), sh, (0, 0, .3)); p(box(w, .06, h, .02), m, (0, d / 2, 0))
    n = 24; u, v = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, .35, n), indexing='ij'); f = fractal(r, 64, 1.8)
    z = .55 - .25 * np.clip((np.abs(u) - .9) / .1, 0, 1) + .06 * f[:n, :n]; p(grid(np.stack([u * w * .53, v * d * .5 - .01, z], -1), np.stack([u * w / 2, v * d / 2], -1)), c)
    for k in range(1 + (w > 1.2)): p(ball(.32, .2, .1, 16, .5, .55), sh, ((k - .5 * (w > 1.2)) * .75, d * .38, .6))

def f_plant(s, p, w, d, h):
    r = s.rng; pot = r.uniform(.1, .2); ph = r.uniform(.15, .35); p(lathe([pot * .7, pot, pot * 1.02, pot * .85, 0], [0, ph, ph, ph * .93, ph * .93], 18), s.mat(['paint', 'marble', 'concrete', 'rust', 'weave']))
    m = s.mat('leaf', tint=None); k = int(r.integers(5, 12))
    if r.random() < .5:
        p(tube([[0, 0, ph * .9], [r.normal(0, .03), r.normal(0, .03), ph + (h - ph) * .6]], .012, 6), s.mat('bark')); p(leaves(r, 160, np.array([w / 2, w / 2, (h - ph) * .4]), .07, .2), m, (0, 0, ph + (h - ph) * .6))
    else:
        for _ in range(k * 2):
            a, o = r.uniform(0, 6.28), r.uniform(.2, .5) * w; t = np.linspace(0, 1, 7); L = (h - ph) * r.uniform(.6, 1.1)
            c = np.stack([np.cos(a) * o * t ** 1.5, np.sin(a) * o * t ** 1.5, ph * .9 + L * (t - .35 * t ** 3)], -1); wd = .035 * np.sin(np.pi * np.clip(t, .05, 1)) ** .7; side = np.array([-np.sin(a), np.cos(a), 0])
            G = np.stack([c - side * wd[:, None], c + [0, 0, -.006], c + side * wd[:, None]], 1); p(grid(G, np.stack(np.broadcast_arrays(t[:, None] * L, np.array([0, .04, .08])[None]), -1)), m)

def f_lamp(s, p, w, d, h):
    r = s.rng; m = s.mat(['metal', 'wood', 'paint']); p(cyl(.14, .03, 18), m); p(cyl(.012, h - .25, 8), m); on = r.random() < .5
    c = np.array([1., .75, .5]) * r.uniform(3, 9); R1, R2 = r.uniform(.1, .16), r.uniform(.17, .24); p(lathe([R2, R1], [h - .32, h - .05], 20), s.emitter(c * .35) if on else s.mat(['weave', 'paint', 'plaid']))
    if on: s.lights.append(('sphere', p.t + p.R @ np.array([0, 0, h - .02]), .08, c * 6))

def f_boxes(s, p, w, d, h):
    r = s.rng; z = 0
    for _ in range(int(r.integers(1, 4))):
        a, b, c = r.uniform(.2, .5, 3); p(box(a, b, c, .004, 1), s.mat(['cardboard', 'cardboard', 'print', 'paint', 'planks'], fit=(a, c)), (r.normal(0, .04), r.normal(0, .04), z), rotz(r.normal(0, .4))); z += c

def f_abstract(s, p, w, d, h):
    r = s.rng; m = s.mat(ANY); k = int(r.integers(5)); z = h / 2
    if k == 0: p(ball(w / 2, d / 2, h / 2, 22, r.uniform(.2, 1.6), r.uniform(.2, 1.6)), m, (0, 0, z))
    elif k == 1: p(torus(min(w, h) * .36, min(w, h) * r.uniform(.06, .14)), m, (0, 0, z), rand_rot(r))
    elif k == 2: t = np.linspace(0, 1, 14); p(lathe(np.clip((w / 3) * (.6 + .4 * np.sin(t * r.uniform(2, 9) + r.uniform(0, 6))), .02, None), t * h, 24), m)
    elif k == 3: p(ball(w / 2, d / 2, h / 2, 26, noise=.5 * (fractal(r, 64, 1.8) - .5)), m, (0, 0, z))
    else: p(box(w, d, h, r.uniform(0, .4) * min(w, d, h)), m, R=rotz(0)); p(box(w * .7, d * .7, h * .6, .02), s.mat(ANY), (0, 0, h))

def f_ball(s, p, w, d, h):
    R = s.rng.uniform(.08, .35); p(ball(R, R, R, 22), s.mat(ANY, fit=(R * 6.28, R * 3.14)), (0, 0, R))

def f_bin(s, p, w, d, h):
    r = s.rng; R = r.uniform(.12, .2); H = r.uniform(.25, .5); p(lathe([0, R * .8, R, R * .97, R * .78], [.005, 0, H, H, .02], 20), s.mat(['metal', 'paint', 'weave', 'rust']))

def small_item(s, p, x, y, z, hmax=.5):
    r = s.rng; k = int(r.integers(8)); a = r.uniform(0, 6.28); H = lambda lo, hi: min(r.uniform(lo, hi), hmax)
    if k == 0: R = H(.03, .05); h = H(.08, .12); p(lathe([0, R, R, R * .9, R * .85, 0], [0, 0, h, h, .01, .01], 16), s.mat(['paint', 'print', 'marble']), (x, y, z))
    elif k == 1: h = H(.2, .33); R = .037; p(lathe([0, R, R, R * .4, R * .36, 0], [0, 0, h * .6, h * .78, h, h], 14), s.mat(['paint', 'print', 'metal'], rough=.1), (x, y, z))
    elif k == 2:
        zz = z
        for _ in range(int(r.integers(1, 5))): hh = r.uniform(.01, .04); p(box(r.uniform(.12, .22), r.uniform(.18, .28), hh), s.mat(['print', 'paint', 'leather'], fit=(.2, .28)), (x, y, zz), rotz(a + r.normal(0, .3))); zz += hh
    elif k == 3: t = np.linspace(0, 1, 10); h = H(.12, .35); p(lathe(np.clip(.05 + .04 * np.sin(t * r.uniform(3, 7) + r.uniform(0, 6)), .012, None), t * h, 18), s.mat(['marble', 'paint', 'tile', 'stripes', 'dots', 'painting']), (x, y, z))
    elif k == 4: b = r.uniform(.05, .2, 3); p(box(b[0], b[1], min(b[2], hmax), .004, 1), s.mat(['print', 'cardboard', 'paint', 'wood'], fit=(b[0], b[2])), (x, y, z), rotz(a))
    elif k == 5: R = H(.03, .07); p(ball(R, R, R, 14), s.mat(['paint', 'leaf', 'print', 'stripes', 'rust']), (x, y, z + R))
    elif k == 6 and hmax > .35:
        w = r.uniform(.3, .7); h = w * .6; p(box(w, .025, h, .006, 1), s.mat('paint', tint=(.1, .1, .1)), (x, y, z + .08), rotz(a * .1)); on = r.random() < .6
        p(quad((-w / 2 + .01, -.0135, .01), (w - .02, 0, 0), (0, 0, h - .02)), s.mat(['screen', 'print'], fit=(w, h), emit=(.4, .4, .45) if on else None, rough=.08), (x, y, z + .08), rotz(a * .1)); p(box(.2, .15, .01), s.mat('paint', tint=(.1, .1, .1)), (x, y, z)); p(box(.04, .03, .1), s.mat('paint', tint=(.1, .1, .1)), (x, y + .02, z))
    else: R = H(.06, .14); p(lathe([0, R * .5, R, R * .95, R * .45, 0], [0, 0, R * .6, R * .6, .012, .012], 18), s.mat(['paint', 'tile', 'wood', 'metal']), (x, y, z))


FURN = [(f_table, (.6, 2.0), (.5, 1.0), (.4, .8), 3), (f_chair, (.38, .55), (.4, .55), (.8, 1.1), 4), (f_shelf, (.5, 1.6), (.22, .4), (.6, 2.2), 3), (f_cabinet, (.4, 1.8), (.35, .6), (.4, 2.1), 3), (f_sofa, (.9, 2.3), (.75, 1.), (.7, .95), 2), (f_bed, (.9, 1.8), (1.9, 2.1), (.6, 1.1), 1),
        (f_plant, (.4, .9), (.4, .9), (.5, 1.8), 2), (f_lamp, (.4, .4), (.4, .4), (1.1, 1.8), 1.5), (f_boxes, (.5, .6), (.5, .6), (.4, 1.), 2), (f_abstract, (.2, 1.), (.2, 1.), (.2, 1.3), 2.5), (f_ball, (.3, .6), (.3, .6), (.3, .6), 1), (f_bin, (.3, .4), (.3, .4), (.3, .5), 1)]
WALLISH = {f_shelf, f_cabinet, f_sofa, f_bed}


def wall_with_hole(s, m, o, a, b, holes):
    """Wall rectangle o + x a^ + y b^ with axis-aligned holes [(x0,x1,y0,y1)] in metres; normals as a x b."""
    la, lb = np.linalg.norm(a), np.linalg.norm(b); ua, ub = np.asarray(a) / la, np.asarray(b) / lb; o = np.asarray(o, float)
    xs = sorted({0., la, *[h[0] for h in holes], *[h[1] for h in holes]}); ys = sorted({0., lb, *[h[2] for h in holes], *[h[3] for h in holes]})
    for x0, x1 in zip(xs[:-1], xs[1:]):
        for y0, y1 in zip(ys[:-1], ys[1:]):
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            if any(h[0] < cx < h[1] and h[2] < cy < h[3] for h in holes): continue
            s.add(quad(o + ua * x0 + ub * y0, ua * (x1 - x0), ub * (y1 - y0), (x0, -y1)), m)


def indoor(rng, bank):
    s = Scene(rng, bank); s.kind = 'indoor'; u = rng.uniform
    style = rng.random()
    W, D = (u(1.6, 2.6), u(6, 18)) if style < .15 else ((u(8, 16), u(10, 24)) if style < .25 else (u(2.6, 7), u(2.8, 8)))
    H = u(2.3, 3.2) if style >= .15 or W < 5 else u(3, 6)
    s.dim = (W, D, H)
    wm = [s.mat(['plaster', 'plaster', 'paint', 'wallpaper', 'brick', 'concrete', 'tile'], rough=.95)] * 4
    if rng.random() < .5: wm = wm[:]; wm[int(rng.integers(4))] = s.mat(['paint', 'wallpaper', 'brick', 'planks', 'tile', 'plaster', 'corrugated'])
    fl = s.mat(['planks', 'planks', 'parquet', 'tile', 'tile', 'carpet', 'concrete', 'marble', 'checker', 'wood']); ce = s.mat(['plaster', 'plaster', 'paint', 'concrete', 'planks'], tint=(1.15,) * 3 if rng.random() < .7 else None)
    s.add(quad((0, 0, 0), (W, 0, 0), (0, D, 0)), fl); s.add(quad((0, D, H), (W, 0, 0), (0, -D, 0)), ce)
    walls = [((0, 0, 0), (0, D, 0), (1, 0, 0)), ((W, 0, 0), (-W, 0, 0), (0, 1, 0)), ((W, D, 0), (0, -D, 0), (-1, 0, 0)), ((0, D, 0), (W, 0, 0), (0, -1, 0))]
    nwin = int(rng.choice([0, 1, 1, 2, 3])); win_on = rng.integers(0, 4, nwin); frame = s.mat(['paint', 'wood', 'metal'], tint=(1.1,) * 3)
    sun = sun_direction(rng, 10, 50); over = float(rng.choice([0, .3, 1.])); night = rng.random() < .15
    lvl = (u(2, 6) if not night else .02); s.sky = Sky(rng, sun, over, lvl); s.sun_dir = sun; s.sun = (np.array([1., .9, .75]) * lvl * u(6, 12) * (1 - over) * (nwin > 0) * (not night)).astype(f32); s.night = night
    skirt = s.mat(['paint', 'wood'], tint=(1.1,) * 3) if rng.random() < .7 else None
    for i, (o, a, n) in enumerate(walls):
        a, o, n = np.array(a, float), np.array(o, float), np.array(n, float); L = np.linalg.norm(a); ua = a / L; holes = []
        for _ in range(int((win_on == i).sum())):
            ww = min(u(.6, 2.4), L * .7); x0 = u(.1, L - ww - .1); y0 = u(.0, 1.1); y1 = min(H - .15, y0 + u(.9, 1.8))
            if any(x0 < h[1] + .2 and x0 + ww > h[0] - .2 for h in holes): continue
            holes.append((x0, x0 + ww, y0, y1))
        # right-handed inward normal: a x up must equal n, else swap orientation
        b = np.array([0, 0, H])
        wall_with_hole(s, wm[i], o, a, b, holes)
        if skirt is not None: 
            c = o + a / 2 + n * .008; s.add(box(L, .016, .09), skirt, c, np.stack([ua, n, [0, 0, 1]], 1))
        R = np.stack([ua, n, [0, 0, 1]], 1)
        for (x0, x1, y0, y1) in holes:
            t = .06; dp = .2
            for (cx, cz, sx, sz) in [((x0 + x1) / 2, y0 - t / 2, x1 - x0 + t, t), ((x0 + x1) / 2, y1 - t / 2, x1 - x0 + t, t), (x0, y0, t, y1 - y0), (x1, y0, t, y1 - y0)]:
                s.add(box(sx, dp, sz), frame, o + ua * cx - n * (dp / 2 - .02) + [0, 0, cz], R)
            for k in range(1, int(rng.integers(1, 4))): s.add(box(.04, .05, y1 - y0), frame, o + ua * (x0 + (x1 - x0) * k / 3) - n * .12 + [0, 0, y0], R)
            if rng.random() < .4: s.add(box(x1 - x0, .05, .04), frame, o + ua * (x0 + x1) / 2 - n * .12 + [0, 0, (y0 + y1) / 2], R)
            s.portals.append((o + ua * x0 + [0, 0, y0] - n * .1, ua * (x1 - x0), np.array([0, 0, y1 - y0]), n))
            if rng.random() < .35:  # curtains
                cm = s.mat(CLOTH)
                for e in (x0 - .1, x1 - .15):
                    cw = u(.25, .6); q, v = np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 3), indexing='ij'); off = .12 + .035 * np.sin(q * u(25, 45))
                    zt = min(H, y1 + .15); zb = max(.02, y0 - .3) if rng.random() < .5 else .03
                    Pg = o + ua * (e + q[..., None] * cw) + n * off[..., None] + np.stack([0 * q, 0 * q, zb + v * (zt - zb)], -1); s.add(grid(Pg, np.stack([q * cw * 1.6, v * (zt - zb)], -1)), cm)
        if not holes and rng.random() < .5:  # door
            dw, dh = u(.75, .95), min(u(1.95, 2.1), H - .05); x = u(.1, max(.11, L - dw - .1)); dm = s.mat(['wood', 'paint', 'planks'])
            s.add(box(dw + .14, .05, dh + .07), frame, o + ua * (x + dw / 2), R); s.add(box(dw, .075, dh), dm, o + ua * (x + dw / 2), R); s.add(ball(.03, .03, .03, 8), s.mat('metal'), o + ua * (x + .08) + n * .06 + [0, 0, 1.])
        for _ in range(int(rng.integers(0, 4))):  # pictures, posters, clocks, sockets
            pw, ph = u(.2, 1.1), u(.2, .9); x = u(.05, max(.06, L - pw - .05)); z = u(1.1, max(1.15, H - ph - .1))
            if any(x < h[1] + .1 and x + pw > h[0] - .1 for h in holes): continue
            if rng.random() < .7: s.add(box(pw + .05, .025, ph + .05), frame if rng.random() < .4 else s.mat(WOODY), o + ua * (x + pw / 2) + n * .0125 + [0, 0, z], R)
            Rr = np.stack([-ua, -n, [0, 0, 1]], 1); s.add(quad((-pw / 2, -.0275, .025), (pw, 0, 0), (0, 0, ph)), s.mat(['painting', 'print', 'print'], fit=(pw, ph)), o + ua * (x + pw / 2) + [0, 0, z], Rr)
    # outside
    if nwin:
        g = s.mat(['grass', 'asphalt', 'paving', 'soil']); z = -u(.1, 8); s.add(quad((-60, -60, z), (120 + W, 0, 0), (0, 120 + D, 0)), g)
        # keep the ground plane out of the room: room floor hides it; buildings and trees opposite
        for _ in range(int(rng.integers(1, 5))):
            a = u(0, 6.28); dist = u(10, 35); c = np.array([W / 2 + np.cos(a) * (dist + W), D / 2 + np.sin(a) * (dist + D), z])
            if rng.random() < .6: s.add(box(u(6, 18), u(6, 18), u(4, 16)), s.mat('facade'), c, rotz(u(0, 1.5)))
            else: tree(s, c, u(4, 9), 350)
    # beams, pillars, partition
    if rng.random() < .2:
        for k in range(int(rng.integers(2, 6))): s.add(box(W, u(.1, .25), .2), s.mat(['wood', 'concrete', 'paint']) if k == 0 else len(s.mats) - 1, (W / 2, D * (k + .5) / 6, H - .2))
    if rng.random() < .25: pw = u(.2, .5); s.add(box(pw, pw, H), wm[0], (u(.8, W - .8), u(.8, D - .8), 0)) if min(W, D) > 2 else None
    if rng.random() < .2 and W > 4: s.add(box(W * u(.3, .5), .12, H), wm[1], (W * .2, D * u(.4, .6), 0))
    if rng.random() < .4: s.add(box(u(.3, .5) * W, u(.3, .5) * D, .012), s.mat(['carpet', 'plaid', 'painting', 'stripes', 'wallpaper']), (W * u(.4, .6), D * u(.4, .6), 0), rotz(rng.normal(0, .15)))
    # lamps
    nl = 0 if (nwin and not night and rng.random() < .35) else int(np.clip(round(W * D / 14 * u(.7, 1.4)), 1, 6))
    T = u(0, 1); col = lerp(np.array([1., .62, .32]), np.array([.85, .95, 1.1]), T) * u(4, 10); kind = rng.random(); gx = max(1, int(np.ceil(np.sqrt(nl * W / D)))); gy = int(np.ceil(nl / gx)) if nl else 0
    for k in range(nl):
        x, y = W * ((k % gx) + .5) / gx + rng.normal(0, .1), D * ((k // gx) + .5) / max(gy, 1) + rng.normal(0, .1)
        if kind < .45:
            a, b = (u(.25, .6), u(.25, 1.3)); s.add(box(a + .04, b + .04, .05), s.mat('metal'), (x, y, H - .05)); s.add(quad((x - a / 2, y + b / 2, H - .052), (a, 0, 0), (0, -b, 0)), s.emitter(col)); s.lights.append(('rect', np.array([x - a / 2, y + b / 2, H - .055]), np.array([a, 0, 0]), np.array([0, -b, 0]), col * 1.3))
        else:
            R = u(.07, .2); z = H - (R if kind > .8 else u(.3, .7)); s.add(ball(R, R, R, 18), s.emitter(col), (x, y, z)); s.add(cyl(.008, H - z, 6), s.mat('paint', tint=(.1,) * 3), (x, y, z)); s.lights.append(('sphere', np.array([x, y, z]), R * 1.02, col * 1.5 * (.15 / R)))
    # furniture
    w8 = np.array([f[4] for f in FURN], float); w8 /= w8.sum(); placed = []; target = int(rng.integers(5, 15) if W * D > 9 else rng.integers(3, 8)); s.tops = []
    for _ in range(target * 8):
        if len(placed) >= target: break
        f, a, b, c, _ = FURN[int(rng.choice(len(FURN), p=w8))]; w, d, h = u(*a), u(*b), min(u(*c), H - .1)
        if w > W * .8 or d > D * .8: continue
        if f in WALLISH or rng.random() < .3:
            i = int(rng.integers(4)); L = W if i in (1, 3) else D
            if L < w + .2: continue
            q = u(w / 2 + .05, L - w / 2 - .05); x, y, ang = [(d / 2 + .05, q, np.pi / 2), (q, d / 2 + .05, np.pi), (W - d / 2 - .05, q, -np.pi / 2), (q, D - d / 2 - .05, 0)][i]; ang += rng.normal(0, .02)
        else: x, y, ang = u(.5, W - .5), u(.5, D - .5), (u(0, 6.28) if rng.random() < .6 else rng.integers(4) * np.pi / 2)
        rad = .5 * np.hypot(w, d) * .92
        if not (.0 <= x - min(rad, w / 2, d / 2) and x + min(rad, w / 2, d / 2) <= W and y - min(rad, w / 2, d / 2) >= 0 and y + min(rad, w / 2, d / 2) <= D): continue
        if any(np.hypot(x - px, y - py) < (rad + pr) * .85 for px, py, pr in placed): continue
        f(s, Placer(s, rotz(ang), (x, y, 0)), w, d, h); placed.append((x, y, rad))
    for _ in range(int(rng.integers(0, 10))):  # things on the floor
        small_item(s, Placer(s, np.eye(3), (0, 0, 0)), u(.2, W - .2), u(.2, D - .2), 0)
    s.placed = placed

    def cam():
        for _ in range(50):
            x, y = u(.25, W - .25), u(.25, D - .25); z = np.clip(rng.normal(1.35, .45), .25, H - .25)
            if any(np.hypot(x - a, y - b) < r * .9 and z < 1.2 for a, b, r in placed): continue
            break
        tx, ty = (W / 2 + rng.normal(0, W * .3), D / 2 + rng.normal(0, D * .3)); yaw = np.arctan2(ty - y, tx - x); pitch = rng.normal(-.18, .22) - .25 * (z - 1.3)
        return np.array([x, y, z]), yaw, float(np.clip(pitch, -1.2, .5)), rng.normal(0, .05)
    s.cam = cam
    return s.finish()


# ---------------------------------------------------------------- outdoor pieces
def tree(s, c, h, n=900):
    r = s.rng; th = h * r.uniform(.25, .5); R = h * r.uniform(.018, .03); bark = s.mat('bark'); lm = s.mat('leaf', jit=.2); c = np.asarray(c, float)
    bend = r.normal(0, .04 * h, 2); s.add(tube(c + np.array([[0, 0, 0], [bend[0] * .4, bend[1] * .4, th], [bend[0], bend[1], h * .75]]), np.array([R * 1.4, R, R * .4]), 8), bark); k = int(r.integers(2, 6)); cw = h * r.uniform(.16, .28)
    for i in range(k):
        a = r.uniform(0, 6.28); o = np.array([np.cos(a), np.sin(a), 0]) * cw * r.uniform(.2, .9); zc = th + (h - th) * r.uniform(.3, .8); cc = c + np.array([*bend, 0]) + o + [0, 0, zc]
        s.add(tube(np.stack([c + [bend[0] * .4, bend[1] * .4, th], cc]), R * .5, 6), bark); q = np.array([cw, cw, (h - th) * .4]) * r.uniform(.6, 1.1); s.add(leaves(r, n // k, q, h * .022 * (900 / max(n, 1)) ** .5, .45), lm, cc)


def conifer(s, c, h, n=700):
    r = s.rng; c = np.asarray(c, float); s.add(cyl(h * .02, h * .9, 8, h * .004), s.mat('bark'), c); m = s.mat('leaf', tint=(.5, .6, .55)); t = r.random(n) ** .6; a = r.uniform(0, 6.28, n); rad = (1 - t) * h * .2 * r.uniform(.3, 1, n)
    p = np.stack([np.cos(a) * rad, np.sin(a) * rad, h * (.12 + .88 * t)], 1); d = np.stack([np.cos(a), np.sin(a), -.3 + 0 * a], 1); w = np.stack([-np.sin(a), np.cos(a), 0 * a], 1); sz = h * .035 * r.uniform(.6, 1.3, (n, 1))
    Q = np.stack([p - d * sz, p - w * sz * .6, p + d * sz, p + w * sz * .6], 1); N = np.broadcast_to((d + [0, 0, .8])[:, None], Q.shape).copy(); N /= np.linalg.norm(N, axis=-1, keepdims=True); s.add(_quads(Q, N, np.stack([[0, 0], [.2, 0], [.2, .2], [0, .2]])[None] + r.random((n, 1, 2)) * 2), m, c)


def car(s, c, yaw):
    r = s.rng; L, W, H = r.uniform(3.6, 4.9), r.uniform(1.65, 1.9), r.uniform(1.4, 1.9); R = rotz(yaw); van = r.random() < .25; b = .42 * H; g = .2
    if van: top = [(-.5, .5 * H), (-.47, .97 * H), (-.4, H), (.2, H), (.36, .62 * H), (.48, .52 * H), (.5, .4 * H)]; cab = (.5, 5)
    else: top = [(-.5, .55 * H), (-.46, .62 * H), (-.36, .66 * H), (-.24, .97 * H), (-.16, H), (.1, .98 * H), (.22, .66 * H), (.45, .56 * H), (.5, .42 * H)]
    prof = np.array([(-.5, g), *top, (.5, g)]) * [L, 1]
    xs = np.linspace(-L / 2, L / 2, 33); zt = np.interp(xs, prof[1:-1, 0], prof[1:-1, 1]); xs, zt = np.r_[xs[0], xs, xs[-1]], np.r_[g, zt, g]; n = len(xs)  # closed ends
    paint = s.mat('paint', rough=.12, spec=.06, jit=.3); glass = s.mat('paint', tint=(.06, .07, .08), rough=.05, spec=.08); dark = s.mat('paint', tint=(.08,) * 3)
    belt = .6 * H; w = np.array([-1, -.97, -.8, 0, .8, .97, 1.]); G = np.zeros((n, 9, 3))
    for k, (yy, f) in enumerate([(-.98, 0), (-1, .5), (-.97, 1), (-.78, 2), (0, 2), (.78, 2), (.97, 1), (1, .5), (.98, 0)]):
        zb = np.minimum(zt, belt); z = {0: np.full(n, g), .5: (g + zb) / 2, 1: zb, 2: zt}[f]; nar = 1 - .12 * np.clip((np.abs(xs) / (L / 2) - .8) / .2, 0, 1); G[:, k] = np.stack([xs, yy * W / 2 * nar, z], -1)
    Pm, Nm, Um = grid(G, np.stack(np.broadcast_arrays(xs[:, None], np.linspace(0, 3, 9)[None]), -1)); N0 = np.cross(Pm[:, 1] - Pm[:, 0], Pm[:, 2] - Pm[:, 0]); N0 /= np.linalg.norm(N0, axis=1, keepdims=True) + 1e-9
    flipn = np.sign((N0 * (Pm.mean(1) - [0, 0, H * .4])).sum(1)); Nm = np.where(((Nm * N0[:, None]).sum(-1, keepdims=True) * flipn[:, None, None]) < 0, -Nm, Nm)
    cz = Pm.mean(1)[:, 2]; slope = np.abs(N0[:, 2]); gl = (cz > belt + .02) & (slope < .86) & (cz < H * .985) & ((Pm[:, :, 2].max(1) - Pm[:, :, 2].min(1)) > .02)
    for m, sel in ((paint, ~gl), (glass, gl)): s.add((Pm[sel], Nm[sel].astype(f32), Um[sel]), m, c, R)
    s.add(box(L * .96, W * .9, .2), dark, np.asarray(c) + [0, 0, g - .05], R)
    for e in (-1, 1): s.add(box(.06, W * .96, .4, .02, 1), paint if r.random() < .5 else dark, np.asarray(c) + R @ np.array([e * L * .492, 0, g]), R); s.add(box(.05, W * .85, .1), s.mat('paint', tint=(1.2, .1, .1) if e < 0 else (1.2, 1.2, 1.1), rough=.1), np.asarray(c) + R @ np.array([e * L * .497, 0, .45 * H]), R)
    tire = s.mat('paint', tint=(.05,) * 3, rough=.8); hub = s.mat('metal')
    for ex in (-.3, .31):
        for ey in (-1, 1):
            o = np.asarray(c) + R @ np.array([ex * L, ey * (W / 2 - .1), .31]); s.add(cat(torus(.22, .09, 20, 8)), tire, o, R @ rotx(np.pi / 2)); s.add(cyl(.2, .1, 14), hub, o + R @ np.array([0, ey * .03 + .05, 0]), R @ rotx(np.pi / 2))


def person(s, c, yaw):
    r = s.rng; h = r.uniform(1.45, 1.9); R = rotz(yaw); p = Placer(s, R, c); top, bot, skin = s.mat(CLOTH + ['paint']), s.mat(['paint', 'weave']), s.mat('paint', tint=np.array([1.1, .8, .62]) * r.uniform(.35, 1.2), rough=.6); st = r.uniform(.0, .3); k = h / 1.75
    for e in (-1, 1):
        p(tube(np.array([[e * .09, e * st, .04], [e * .1, e * st * .4, .45], [e * .09, 0, .88]]) * k, np.array([.055, .06, .085]) * k, 8), bot); p(box(.1 * k, .26 * k, .08 * k, .03, 1), bot, np.array([e * .09, e * st - .05, 0]) * k); p(tube(np.array([[e * .2, 0, 1.42], [e * .26, .03 * e, 1.15], [e * .25, -.12 - e * st * .3, .9]]) * k, np.array([.06, .045, .04]) * k, 8), top)
    p(ball(.2 * k, .13 * k, .33 * k, 14, .7, .8), top, (0, 0, 1.17 * k)); p(ball(.09 * k, .1 * k, .125 * k, 14), skin, (0, 0, 1.63 * k)); p(ball(.1 * k, .105 * k, .1 * k, 12), s.mat('paint', tint=np.array([.3, .2, .12]) * r.uniform(.2, 1.6)), (0, .02 * k, 1.68 * k)); p(cyl(.045 * k, .12 * k, 8), skin, (0, 0, 1.46 * k))


def building(s, c, w, d, h, yaw, rich):
    r = s.rng; fm = s.mat('facade'); R = rotz(yaw); t, sx, sy = s.mats[fm][:3]; bx = sx / 2; fl = sy / 2
    w = max(1, int(w / bx)) * bx; nf = max(1, round(h / fl)); h = nf * fl; p = Placer(s, R, c)
    P, N, U = box(w, d, h); U = U - 10 + np.array([w / 2, 0], f32); s.mats[fm] = (*s.mats[fm][:12], 0., 0., 0.)
    P, N, U = P.copy(), N, U
    side = np.abs(N[:, 0, 2]) < .5; V = U.copy(); V[side, :, 1] = -P[side][..., 2]; V[side, :, 0] = np.where(np.abs(N[side][:, :, 1]) > .5, P[side][..., 0] + w / 2, P[side][..., 1] + d / 2)
    p((P[side], N[side], V[side]), fm); roof = s.mat(['concrete', 'rust', 'asphalt', 'paving', 'tile'])
    if r.random() < .4 and h < 14:
        k = r.uniform(.25, .6) * d * .5; G = np.array([[[-w / 2 - .3, -d / 2 - .4, h], [w / 2 + .3, -d / 2 - .4, h]], [[-w / 2 - .3, 0, h + k], [w / 2 + .3, 0, h + k]], [[-w / 2 - .3, d / 2 + .4, h], [w / 2 + .3, d / 2 + .4, h]]]); 
        p(quad(G[0, 0], G[0, 1] - G[0, 0], G[1, 0] - G[0, 0]), roof); p(quad(G[2, 1], G[2, 0] - G[2, 1], G[1, 1] - G[2, 1]), roof)
        for e in (-1, 1): p((np.array([[[e * w / 2, -d / 2, h], [e * w / 2, d / 2, h], [e * w / 2, 0, h + k]]], f32), np.array([[[e, 0, 0]] * 3], f32), np.array([[[0, 0], [1, 0], [.5, 1]]], f32)), roof)
        if r.random() < .5: p(box(.6, .6, 1.2), s.mat('brick'), (r.uniform(-.3, .3) * w, d * .15, h + k * .4))
    else: p(box(w + .2, d + .2, .3), roof, (0, 0, h)); p(box(w * .3, d * .3, 1.8), s.mat(['concrete', 'plaster', 'metal']), (r.uniform(-.3, .3) * w, 0, h)) if r.random() < .5 else None
    tr = s.mat(['concrete', 'paint', 'plaster'])
    p(box(w + .06, .12, .5), tr, (0, -d / 2 - .02, 0))
    if rich:
        if r.random() < .6: p(box(w, .15, .18), tr, (0, -d / 2 - .05, fl * 1.02))
        if r.random() < .55:  # shop front
            gm = s.mat('paint', tint=(.1, .12, .14), rough=.04, spec=.08); sm = s.mat(['paint', 'wood', 'metal', 'marble']); nb = int(w / bx)
            p(box(w * .98, .06, fl * .95), sm, (0, -d / 2 - .03, 0)); sg = s.mat(['print', 'paint', 'stripes'], fit=(w * .5, .6)); p(box(w * .96, .14, .6), sg, (0, -d / 2 - .08, fl * .78))
            for i in range(nb): p(box(bx * .82, .03, fl * .6), gm, (-w / 2 + bx * (i + .5), -d / 2 - .065, .35))
            if r.random() < .5: p(quad((-w * .45, -d / 2 - 1.2, fl * .62), (w * .9, 0, 0), (0, 1.15, .5)), s.mat(['stripes', 'paint', 'weave']))
        if r.random() < .5:  # balconies / sills
            bm = s.mat(['metal', 'paint', 'concrete'])
            for i in range(int(w / bx)):
                for j in range(1, nf):
                    if r.random() < .45:
                        x, z = -w / 2 + bx * (i + .5), j * fl; p(box(bx * .8, .9, .12), bm, (x, -d / 2 - .45, z)); p(box(bx * .8, .04, .05), bm, (x, -d / 2 - .88, z + 1.)); p(box(bx * .8, .02, .8), bm, (x, -d / 2 - .88, z + .12)) if r.random() < .5 else [p(box(.03, .03, 1.), bm, (x + q * bx * .4, -d / 2 - .88, z)) for q in np.linspace(-1, 1, 6)]
        else:
            for i in range(int(w / bx)):
                for j in range(nf): p(box(bx * .7, .14, .07), tr, (-w / 2 + bx * (i + .5), -d / 2 - .05, j * fl + fl * .12))
        if r.random() < .5: p(cyl(.05, h, 6), s.mat('metal'), (w / 2 - .2, -d / 2 - .07, 0))


def street_item(s, c, yaw):
    r = s.rng; p = Placer(s, rotz(yaw), c); k = int(r.integers(9)); m = s.mat(['metal', 'paint', 'rust'])
    if k == 0: p(cyl(.09, 6.5, 8, .05), m); p(tube([[0, 0, 6.4], [0, -.8, 6.8], [0, -1.4, 6.75]], .04, 6), m); p(box(.3, .7, .12, .03, 1), m, (0, -1.6, 6.68))
    elif k == 1: p(cyl(.03, 2.6, 6), m); q = s.mat(['print', 'paint'], fit=(.7, .7)); p(cyl(.35, .02, 20) if r.random() < .5 else box(.6, .6, .02), q, (0, -.04, 2.4), rotx(np.pi / 2))
    elif k == 2: w = s.mat(['wood', 'paint', 'planks']); [p(box(1.6, .1, .04), w, (0, -.2 + .13 * i, .45)) for i in range(4)]; [p(box(1.6, .03, .1), w, (0, .28, .55 + .14 * i)) for i in range(3)]; [p(box(.06, .45, .45), m, (e * .65, 0, 0)) for e in (-1, 1)]
    elif k == 3: p(cyl(.25, .9, 14), m); p(cyl(.27, .06, 14), s.mat('paint', tint=(.1,) * 3), (0, 0, .9))
    elif k == 4: p(lathe([.12, .09, .09, .11, .04, 0], [0, .1, .75, .8, .95, .96], 12), m)
    elif k == 5: b = r.uniform(.5, 1.4, 3); p(box(*b, .02, 1), s.mat(['metal', 'paint', 'print', 'cardboard', 'planks', 'brick']))
    elif k == 6: p(leaves(r, 400, np.array([r.uniform(.5, 1.6), .5, .5]), .1, .5), s.mat('leaf'), (0, 0, .5)); p(box(1.4, .7, .4), s.mat(['concrete', 'brick', 'wood']))
    elif k == 7: L = r.uniform(2, 5); [p(box(.05, .05, 1.1), m, (x, 0, 0)) for x in np.linspace(-L / 2, L / 2, 5)]; [p(box(L, .03, .04), m, (0, 0, z)) for z in (.3, .65, 1.05)]
    else: f_abstract(s, p, *r.uniform(.5, 2.2, 3))


def outdoor(rng, bank):
    s = Scene(rng, bank); u = rng.uniform; style = rng.random()
    sun = sun_direction(rng, 8, 70); over = float(rng.choice([0, .15, .5, 1.])); s.sky = Sky(rng, sun, over, 1.); s.sun_dir = sun
    warm = np.exp(-sun[2] * 5); s.sun = (lerp(np.array([1., .95, .88]), np.array([1., .7, .42]), warm) * u(4, 9) * (1 - over) ** 1.2).astype(f32); s.haze = float(rng.choice([0, 1, 1, 3])) * .0016; s.night = False
    if style < .7:
        s.kind = 'street'; rw, sw = u(3, 6.5), u(1.5, 4); L = 120; kerb = u(.08, .16)
        road = s.mat(['asphalt', 'asphalt', 'asphalt', 'cobble', 'paving', 'concrete']); side = s.mat(['paving', 'paving', 'concrete', 'cobble', 'tile', 'asphalt']); km = s.mat(['concrete', 'paving'])
        s.add(quad((-rw, -L, 0), (2 * rw, 0, 0), (0, 2 * L, 0)), road)
        for e in (-1, 1):
            s.add(box(sw, 2 * L, kerb), side, (e * (rw + sw / 2), 0, 0)); s.add(box(.15, 2 * L, kerb + .004), km, (e * (rw + .075), 0, 0))
        s.add(quad((-150, -150, -.02), (300, 0, 0), (0, 300, 0)), s.mat(['grass', 'paving', 'concrete', 'gravel', 'soil']))
        if rng.random() < .7:
            lm = s.mat('paint', tint=(1.6,) * 3, rough=.9); dash = rng.random() < .7
            for y in np.arange(-60, 60, 4.): s.add(quad((-.06, y, .004), (.12, 0, 0), (0, 2. if dash else 4., 0)), lm)
            if rng.random() < .4:
                y = u(-15, 15); [s.add(quad((x, y, .005), (.45, 0, 0), (0, 3, 0)), lm) for x in np.arange(-rw + .2, rw - .4, .9)]
        for e in (-1, 1):
            y = -70.; bh = u(4, 20); gap = rng.random() < .4
            while y < 70:
                w, d, h = u(7, 18), u(7, 13), max(3, bh * u(.6, 1.4)); 
                if rng.random() < (.35 if gap else .1):
                    for _ in range(int(rng.integers(1, 4))): tree(s, (e * (rw + sw + u(2, 8)), y + u(0, w), 0), u(4, 11), 600)
                    if rng.random() < .6: [s.add(box(.1, .1, 1.2), km, (e * (rw + sw + .3), y + q, 0)) for q in np.arange(0, w, 1.)]; s.add(box(.06, w, .5), s.mat(['planks', 'metal', 'brick']), (e * (rw + sw + .3), y + w / 2, .4))
                else: building(s, (e * (rw + sw + d / 2 + (u(0, 4) if gap else 0)), y + w / 2, 0), w, d, h, -e * np.pi / 2 * -1, abs(y) < 45)
                y += w + (u(0, 4) if gap else 0.02)
        tr = rng.random() < .6; sp = u(6, 14); th = u(4, 9)
        for e in (-1, 1):
            for y in np.arange(-45, 45, sp):
                if tr and rng.random() < .7: tree(s, (e * (rw + .7), y + rng.normal(0, .5), kerb), th * u(.8, 1.2), 1100 if abs(y) < 20 else 400)
            for y in np.arange(-40, 40, 5.2):
                if rng.random() < .4: car(s, (e * (rw - 1.1), y + rng.normal(0, .4), 0), np.pi / 2 * (1 if e > 0 else -1) + rng.normal(0, .02))
            for _ in range(int(rng.integers(2, 10))): street_item(s, (e * (rw + u(.3, sw)), rng.normal(0, 18), kerb), np.pi / 2 * e + rng.normal(0, .1))
            for _ in range(int(rng.integers(0, 6))): person(s, (e * (rw + u(.3, sw)), rng.normal(0, 14), kerb), u(0, 6.28))
        for _ in range(int(rng.integers(0, 4))): car(s, (rng.choice([-1, 1]) * rw * .4, u(-40, 40), 0), np.pi / 2 * rng.choice([-1, 1]))
        if rng.random() < .3:
            wm = s.mat('paint', tint=(.05,) * 3)
            for k in range(3): t = np.linspace(-60, 60, 41); s.add(tube(np.stack([0 * t + rw + .5 - k * .3, t, 7 + .6 * np.cos((t % 30 - 15) / 15 * 3.14 / 2) * -1], -1), .015, 4), wm)
        s.add(box(60, 8, u(6, 22)), s.mat('facade'), (0, 95 * rng.choice([-1, 1]), 0)) if rng.random() < .5 else None

        def cam():
            x = rng.choice([u(-rw, rw), rng.choice([-1, 1]) * (rw + u(.2, sw - .3))]); z = (u(.4, 2.4) if rng.random() < .85 else u(2.5, 7)) + kerb
            yaw = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, .7); return np.array([x, u(-25, 25), z]), yaw, rng.normal(-.03, .12) - .07 * max(0, z - 2), rng.normal(0, .03)
    else:
        s.kind = 'nature'; n = 72; f = fractal(rng, 128, 2.0)[:n + 1, :n + 1]; amp = u(.3, 7); g = np.linspace(-1, 1, n + 1); g = np.sign(g) * np.abs(g) ** 1.8 * 110; X, Y = np.meshgrid(g, g, indexing='ij')
        Z = (f - .5) * 2 * amp * np.clip(np.hypot(X, Y) / 20, .12, 5) ** .8; Z -= Z[n // 2, n // 2]; gm = s.mat(['grass', 'grass', 'soil', 'gravel', 'rock']); s.add(grid(np.stack([X, Y, Z], -1), np.stack([X, Y], -1)), gm)

        def hz(x, y): i = np.clip(np.searchsorted(g, x) - 1, 0, n - 1); j = np.clip(np.searchsorted(g, y) - 1, 0, n - 1); a, b = (x - g[i]) / (g[i + 1] - g[i]), (y - g[j]) / (g[j + 1] - g[j]); return (Z[i, j] * (1 - a) + Z[i + 1, j] * a) * (1 - b) + (Z[i, j + 1] * (1 - a) + Z[i + 1, j + 1] * a) * b
        con = rng.random() < .4; dens = int(rng.integers(6, 40))
        for _ in range(dens):
            a, d = u(0, 6.28), 4 + 60 * rng.random() ** 1.3; x, y = np.cos(a) * d, np.sin(a) * d; h = u(3, 12)
            (conifer if con else tree)(s, (x, y, hz(x, y) - .1), h, 700 if d < 20 else 250)
        for _ in range(int(rng.integers(5, 30))):
            a, d = u(0, 6.28), 1.5 + 25 * rng.random(); x, y = np.cos(a) * d, np.sin(a) * d; R = u(.1, 1.2); s.add(ball(R, R * u(.6, 1.2), R * u(.5, .9), 16, noise=.6 * (fractal(rng, 32, 1.6) - .5)), s.mat('rock'), (x, y, hz(x, y)), rotz(a))
        gmx = s.mat('leaf')
        for _ in range(int(rng.integers(4, 25))):
            a, d = u(0, 6.28), 1 + 18 * rng.random(); x, y = np.cos(a) * d, np.sin(a) * d; q = u(.2, .9); s.add(leaves(rng, 120, np.array([q, q, q * .7]), .09, .3), gmx, (x, y, hz(x, y) + q * .4))
        for _ in range(int(rng.integers(0, 5))):
            a, d = u(0, 6.28), 3 + 15 * rng.random(); x, y = np.cos(a) * d, np.sin(a) * d; rng.choice([street_item, person, car])(s, (x, y, hz(x, y) - .03), u(0, 6.28))
        if rng.random() < .5:
            t = np.linspace(-1, 1, 60); px = np.sin(t * u(1, 4)) * 10; py = t * 60; wd = u(.6, 2.2); c = np.stack([px, py], 1); nn = np.stack([np.gradient(py), -np.gradient(px)], 1); nn /= np.linalg.norm(nn, axis=1, keepdims=True); G = np.stack([np.stack([*(q := c + nn * e * wd).T, hz(*q.T) + .03], -1) for e in (-1, 0, 1)], 1); s.add(grid(G, np.stack(np.broadcast_arrays(py[:, None], np.array([-wd, 0, wd])[None]), -1)), s.mat(['soil', 'gravel', 'asphalt', 'paving']))
        if rng.random() < .5: building(s, (u(10, 30) * rng.choice([-1, 1]), u(8, 30), hz(15., 15.) - 1), u(6, 12), u(6, 10), u(3, 8), u(0, 6), True)

        def cam():
            a, d = u(0, 6.28), 6 * rng.random(); x, y = np.cos(a) * d, np.sin(a) * d; return np.array([x, y, hz(x, y) + u(.4, 2.2)]), u(0, 6.28), rng.normal(-.06, .12), rng.normal(0, .03)
    s.cam = cam
    return s.finish()


def make_scene(seed, bank, kind=None):
    rng = np.random.default_rng([seed, 12345])
    kind = kind or ('indoor' if rng.random() < .55 else 'outdoor')
    return (indoor if kind == 'indoor' else outdoor)(rng, bank)


def sample_camera(rng, scene, size=None):
    """Random pinhole camera: size, focal length, principal point, pose (camera x right, y down, z forward)."""
    W, H = size or [(256, 192), (320, 240), (256, 256), (192, 256), (320, 192), (288, 216)][int(rng.integers(6))]
    hfov = np.deg2rad(np.clip(rng.normal(68, 18), 32, 115)); m = max(W, H); f = .5 * m / np.tan(hfov / 2)
    fx, fy = f, f * (1 + (rng.normal(0, .01) if rng.random() < .3 else 0)); cx, cy = W / 2 + rng.normal(0, .015) * W, H / 2 + rng.normal(0, .015) * H
    pos, yaw, pitch, roll = scene.cam()
    fwd = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)]); right = np.cross(fwd, [0, 0, 1]); right /= np.linalg.norm(right); down = np.cross(fwd, right)
    c, sn = np.cos(roll), np.sin(roll); r2, d2 = c * right + sn * down, -sn * right + c * down
    return dict(w=int(W), h=int(H), fx=float(fx), fy=float(fy), cx=float(cx), cy=float(cy), R=np.stack([r2, d2, fwd], 1), t=pos)  # R: camera->world


def good_view(cam, tracer, rng=None):
    """Cheap probe (24x18 rays): reject views that start inside or too close to things, stare at one surface or mostly at the sky."""
    W, H = cam['w'], cam['h']; u, v = np.meshgrid((np.arange(24) + .5) / 24 * W, (np.arange(18) + .5) / 18 * H)
    d = (cam['R'] @ np.stack([(u.ravel() - cam['cx']) / cam['fx'], (v.ravel() - cam['cy']) / cam['fy'], np.ones(u.size)])).astype(f32); tri, z, _, _ = tracer.hit(np.asarray(cam['t'], f32)[:, None], d); k = tri >= 0
    if k.mean() < .35: return False
    z = z[k]; lo, md = np.quantile(z, [.02, .5]); return bool(lo > .3 and md > .7 and np.log(z).std() > (.2 if lo < 3 else .25) and (z < 80).mean() > .8)


def pick_camera(rng, scene, tracer, size=None, tries=12):
    for _ in range(tries):
        c = sample_camera(rng, scene, size)
        if good_view(c, tracer): break
    return c


if __name__ == '__main__':
    import time
    from data_shards.rendering.legacy_tex import Bank
    b = Bank(0)
    for k in ('indoor', 'outdoor'):
        for i in range(8):
            t = time.process_time(); s = make_scene(i, b, k); print(k, s.kind, i, len(s.P), 'tris', len(s.mats), 'mats', len(s.lights), 'lights', len(s.portals), 'portals', round(time.process_time() - t, 3), 's')
