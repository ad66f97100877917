"""Deferred CPU renderer: Embree rays (embreex) + numpy shading in structure-of-arrays form (3,n).

Exact z-depth; sun, lamp and window light with soft shadows; one gathered bounce plus an ambient estimate for later
bounces; glossy reflections; haze; edge antialiasing.  Deterministic for a given (scene seed, camera, seed)."""
import numpy as np
try:
    from embreex.rtcore_scene import EmbreeScene
    from embreex.mesh_construction import TriangleMesh
except ImportError: EmbreeScene = None
f32 = np.float32
PI = f32(np.pi)


def dot(a, b): return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
def unit(a): return a * (1 / np.sqrt(dot(a, a) + f32(1e-20)))
def col(v): return np.asarray(v, f32).reshape(3, 1)
def T(a): return np.array(a.T, f32, order='C')


def onb(n):
    s = np.where(n[2] >= 0, f32(1), f32(-1)); a = -1 / (s + n[2]); b = n[0] * n[1] * a
    return np.stack([1 + s * n[0] * n[0] * a, s * b, -s * n[0]]), np.stack([b, s + n[1] * n[1] * a, -n[1]])


class Tracer:
    def __init__(self, P): self.s = EmbreeScene(); self.mesh = TriangleMesh(self.s, np.ascontiguousarray(P, f32)); self.rays = 0

    def hit(self, o, d):
        """Closest hit for rays (3,n): triangle (-1 = miss), t, u, v."""
        self.rays += d.shape[1]; r = self.s.run(T(np.broadcast_to(o, d.shape)), T(d), output=True); return r['primID'], r['tfar'], r['u'], r['v']

    def free(self, o, d, dist):
        """Boolean (n): segment of length dist is unobstructed."""
        n = d.shape[1]
        if n == 0: return np.zeros(0, bool)
        self.rays += n; return self.s.run(T(o), T(d), dists=np.full(n, dist, f32) if np.ndim(dist) == 0 else np.ascontiguousarray(dist, f32), query='OCCLUDED') < 0


if EmbreeScene is None: from data_shards.rendering.legacy_bvh import Tracer  # noqa: F811  (same interface, 2-3x slower)


class Renderer:
    def __init__(self, scene, quality=1, tracer=None):
        sc = self.sc = scene; self.q = quality; self.tr = (tracer or Tracer)(sc.P); F = len(sc.P); self.indoor = sc.kind == 'indoor'
        self.FD = np.ascontiguousarray(np.concatenate([sc.N.reshape(F, 9), sc.UV.reshape(F, 6), sc.Ng, sc.T, sc.B], 1), f32)
        self.FB = np.ascontiguousarray(np.concatenate([sc.Ng, sc.m_alb[sc.fm]], 1), f32)
        L = []
        for l in sc.lights:
            if l[0] == 'rect':
                n = np.cross(l[2], l[3]); A = np.linalg.norm(n); L.append(('rect', col(l[1]), col(l[2]), col(l[3]), col(n / A), f32(A), col(l[4]), A * np.mean(l[4])))
            else: A = np.pi * l[2] ** 2; L.append(('sphere', col(l[1]), f32(l[2]), None, None, f32(A), col(l[3]), 4 * A * np.mean(l[3])))
        for p in sc.portals: n = np.cross(p[1], p[2]); A = np.linalg.norm(n); L.append(('portal', col(p[0]), col(p[1]), col(p[2]), col(p[3]), f32(A), None, A * sc.sky.level * .6))
        self.lights = L; w = np.array([l[-1] for l in L]) + 1e-9; self.lp = w / w.sum() if L else w
        self.has_sun = float(np.sum(sc.sun)) > 1e-3; self.sd = unit(col(sc.sun_dir)); self.sT, self.sB = onb(self.sd); self.sunc = col(sc.sun)
        self.skyT = lambda d, clouds=True: T(sc.sky(T(d), clouds))

    # ---- surface record at hits
    def surf(self, tri, u, v, d, dist, pix):
        sc = self.sc; R = T(self.FD.take(tri, 0)); w = 1 - u - v; m = sc.fm.take(tri); M = T(sc.M.take(m, 0))
        N = unit(R[0:3] * w + R[3:6] * u + R[6:9] * v); G = R[15:18]; G = G * np.where(dot(G, d) > 0, f32(-1), f32(1)); N = N * np.where(dot(N, G) < 0, f32(-1), f32(1))
        U = R[9] * w + R[11] * u + R[13] * v; V = R[10] * w + R[12] * u + R[14] * v; sw = M[14] > .5; U, V = np.where(sw, V, U), np.where(sw, U, V)
        cos = np.clip(-dot(N, d), .08, 1); lod = np.log2(np.maximum(dist * pix * 256 / (np.sqrt(cos) * np.minimum(M[1], M[2])), f32(1e-3))) + f32(.15)
        r = sc.bank.sample_soa(sc.m_tex.take(m), U / M[1] + M[12], V / M[2] + M[13], lod)
        nx, ny = np.where(sw, r[4], r[3]), np.where(sw, r[3], r[4]); Nb = unit(N + R[18:21] * nx + R[21:24] * ny); c = dot(Nb, d); Nb = np.where(c > -.03, unit(Nb - d * (c + f32(.06))), Nb)
        alb = np.minimum(r[:3] * M[3:6], f32(.97)); rough = np.where(M[6] >= 0, M[6], r[5]); return m, Nb, G, alb, rough, M

    def sun_vis(self, x, N, rng, spread):
        """Cosine times visibility of the sun (n)."""
        c = dot(N, self.sd); k = np.flatnonzero(c > 0); E = np.zeros(c.shape, f32)
        if len(k):
            r = rng.random((2, len(k)), dtype=f32); a = r[0] * (2 * PI); q = np.sqrt(r[1]) * f32(spread); d = unit(self.sd + self.sT * (np.cos(a) * q) + self.sB * (np.sin(a) * q)); E[k] = c.take(k) * self.tr.free(x.take(k, 1), d, 400.)
        return E

    def lamp(self, i, x, N, rng, vis=True):
        """Irradiance (3,n) and direction (3,n) from one random point of light i."""
        kind, p, a, b, nl, A, rad, _ = self.lights[i]; n = x.shape[1]; r = rng.random((2, n), dtype=f32)
        if kind == 'sphere':
            v = p - x; t, s = onb(unit(v)); ph = r[0] * (2 * PI); q = np.sqrt(r[1]) * a; v = v + t * (np.cos(ph) * q) + s * (np.sin(ph) * q); d2 = dot(v, v); dd = np.sqrt(d2); D = v * (1 / dd); g = A / np.maximum(d2, f32(4e-3)); ln = np.maximum(dd - a * f32(1.1), 1e-3)
        else: v = p + a * r[0] + b * r[1] - x; d2 = dot(v, v); dd = np.sqrt(d2); D = v * (1 / dd); g = np.maximum(-dot(D, nl), 0) * A / np.maximum(d2, f32(.02) if kind == 'rect' else A * f32(.12)); ln = dd * f32(.995) if kind == 'rect' else dd + 40
        g = g * np.maximum(dot(N, D), 0); k = np.flatnonzero(g > 1e-5)
        if vis and len(k): f = np.zeros(n, f32); f[k] = g.take(k) * self.tr.free(x.take(k, 1), D.take(k, 1), ln.take(k)); g = f
        return (rad if rad is not None else self.skyT(D, False)) * g, D

    @staticmethod
    def ggx(N, l, v, rough):
        a2 = np.maximum(rough, f32(.12)) ** 4; h = unit(l + v); nh = np.clip(dot(N, h), 0, 1); nl = np.clip(dot(N, l), 0, 1); nv = np.clip(dot(N, v), .1, 1); k = rough * f32(.5) + f32(.05)
        return a2 / (PI * (nh * nh * (a2 - 1) + 1) ** 2) * nl / (4 * (nl * (1 - k) + k) * (nv * (1 - k) + k))

    def bounce(self, x, d, rng, amb, blocks=1):
        """Radiance arriving along rays whose hits are lit by one shadow ray each (ray blocks take turns among the lights)."""
        tri, t, u, v = self.tr.hit(x, d); n = d.shape[1]; hitm = tri >= 0; L = np.zeros((3, n), f32)
        k = np.flatnonzero(hitm)
        if not self.indoor:
            ms = np.flatnonzero(~hitm)
            if len(ms): L[:, ms] = self.skyT(d.take(ms, 1), False)
        if len(k):
            R = T(self.FB.take(tri.take(k), 0)); dk = d.take(k, 1); G = R[:3] * np.where(dot(R[:3], dk) > 0, f32(-1), f32(1)); tk = t.take(k); y = x.take(k, 1) + dk * tk + G * (f32(1e-3) + f32(3e-5) * tk); E = np.empty((3, len(k)), f32); E[:] = amb
            src = list(range(len(self.lights))) + ([-1] if self.has_sun else [])
            if src:
                p = list(self.lp); 
                if self.has_sun: p = [q * (.6 if self.lights else 1) for q in p] + [.4 if self.lights else 1.]
                c = np.cumsum(p); b0 = rng.random(); edges = np.searchsorted(k, np.arange(blocks + 1) * (n // blocks))
                for j in range(blocks):
                    s = slice(edges[j], edges[j + 1])
                    if s.stop <= s.start: continue
                    i = min(int(np.searchsorted(c, (j + b0) / blocks)), len(src) - 1); w = f32(1 / p[i])
                    E[:, s] += (self.sun_vis(y[:, s], G[:, s], rng, .02) * self.sunc if src[i] < 0 else self.lamp(src[i], y[:, s], G[:, s], rng)[0]) * w
            L[:, k] = R[3:6] * E * (1 / PI)
        return L, tri, t

    def trace_rgbd(self, cam, seed):
        sc, q = self.sc, self.q; rng = np.random.Generator(np.random.SFC64([seed, 77])); ev = rng.normal(0, .22); self.tr.rays = 0; W, H = cam['w'], cam['h']; n0 = W * H; R = cam['R'].astype(f32); o = col(cam['t']); pix = f32(1 / cam['fx'])

        def rays(px, py): return R @ np.stack([(px - f32(cam['cx'])) * pix, (py - f32(cam['cy'])) / f32(cam['fy']), np.ones_like(px)])
        yy, xx = np.divmod(np.arange(n0, dtype=np.int32), W); px, py = xx.astype(f32) + f32(.5), yy.astype(f32) + f32(.5)
        d0 = rays(px, py); tri0, t0, u0, v0 = self.tr.hit(o, d0); hitm = tri0 >= 0  # camera z of the direction is 1: t is the z-depth
        k = np.flatnonzero(hitm); depth = np.full(n0, np.inf)
        if len(k) == 0: return None
        # refine against the hit triangle's plane in float64
        g = sc.Ng[tri0[k]].astype(np.float64); dd = np.stack([(px[k].astype(float) - cam['cx']) / cam['fx'], (py[k].astype(float) - cam['cy']) / cam['fy'], np.ones(len(k))], 1) @ cam['R'].T
        den = np.einsum('ij,ij->i', g, dd); z = np.einsum('ij,ij->i', g, sc.P[tri0[k], 0].astype(np.float64) - cam['t']) / np.where(np.abs(den) < 1e-9, 1e-9, den); depth[k] = np.where(np.abs(z - t0[k]) < 1e-3 * t0[k], z, t0[k])
        ln = np.sqrt(dot(d0, d0)); D0 = d0 / ln; tk = t0.take(k); V = D0.take(k, 1)
        m, N, G, alb, rough, M = self.surf(tri0.take(k), u0.take(k), v0.take(k), V, tk * ln.take(k), pix); X = o + d0.take(k, 1) * tk + G * (f32(1e-3) + f32(3e-5) * tk); n = len(k)
        full = lambda A, fill=0, idx=k: self._full(A, idx, n0, fill)
        Nf, Xf, Gf, Zf, mf = full(N), full(X), full(G), full(tk, 1e6), full(m, -1)
        im = lambda A: A.reshape(A.shape[:-1] + (H, W))
        # ---- indirect light at reduced resolution, filtered, then upsampled
        hs, nr = [(3, 8), (2, 12), (2, 40)][q]; hy = np.minimum(np.arange(0, H, hs) + hs // 2, H - 1); hx = np.minimum(np.arange(0, W, hs) + hs // 2, W - 1); Hh, Wh = len(hy), len(hx); hid = (hy[:, None] * W + hx).ravel(); ok = np.flatnonzero(hitm[hid]); s = hid[ok]
        gi = np.zeros((3, Hh * Wh), f32); amb = col([0, 0, 0]) if self.indoor else col((sc.sky.zen + sc.sky.hor) * .5 * sc.sky.level)
        if len(ok):
            Xs, Ns, Gs = Xf.take(s, 1), Nf.take(s, 1), Gf.take(s, 1); A = unit(Ns + Gs); Ta, Ba = onb(A); ns = len(s); rot = rng.random((2, ns), dtype=f32); acc = np.zeros((3, ns), f32); first = 2
            for ii in (np.arange(first), np.arange(first, nr)):
                K = len(ii); a = ((rot[0] + (ii[:, None] * .7548777 % 1).astype(f32)) % 1).ravel() * (2 * PI); b = ((rot[1] + ((ii[:, None] + .5) / nr).astype(f32)) % 1).ravel(); r = np.sqrt(b); tile = lambda Q: np.tile(Q, (1, K))
                dd = tile(Ta) * (r * np.cos(a)) + tile(Ba) * (r * np.sin(a)) + tile(A) * np.sqrt(1 - b); Gt = tile(Gs); up = dot(dd, Gt); dd = dd + Gt * np.maximum(f32(.02) - up, 0)
                L = self.bounce(tile(Xs), dd, rng, amb, K)[0]; lim = np.percentile(L[1, ::5], 98.5) * 4 + f32(1e-4); L = np.minimum(L, lim); acc += L.reshape(3, K, ns).sum(1) * PI
                if K == first: mean = acc.mean(1, keepdims=True) / first; rho = f32(np.clip(alb.mean(), .1, .7)); amb = amb + mean * (rho / (1 - rho * .6) if self.indoor else rho * f32(.4))
            gi[:, ok] = acc / nr
            hN, hX, hZ = Nf.take(hid, 1), Xf.take(hid, 1), Zf.take(hid); r2 = lambda Q: Q.reshape(Q.shape[:-1] + (Hh, Wh)); gi = atrous(r2(gi), r2(hN), r2(hX), r2(hZ), pix * hs, (1, 2, 4) if q < 2 else (1, 2)).reshape(3, -1)
            Ei = self.upsample(gi, hitm[hid], hN, hX, X, N, G, tk, k, W, hs, Hh, Wh, pix)
        else: Ei = np.zeros((3, n), f32)
        if self.indoor:
            w, d_, h_ = sc.dim; outside = np.flatnonzero((X[0] < -.1) | (X[0] > w + .1) | (X[1] < -.1) | (X[1] > d_ + .1) | (X[2] > h_ + .1) | (X[2] < -.05))
            if len(outside): Ei[:, outside] = col((sc.sky.zen + sc.sky.hor) * .5 * sc.sky.level) * (PI * (f32(.55) + f32(.45) * N[2].take(outside)))
        # ---- direct light
        Es = np.zeros((3, n), f32); Sp = np.zeros((3, n), f32); rc = np.clip(rough, f32(.05), 1); F0, met = M[7], M[8]; nv = np.clip(-dot(N, V), 0, 1); fres = F0 + np.maximum(1 - rough - F0, 0) * (1 - nv) ** 5
        mirror = (rough < .32) & ((fres > .025) | (met > 0)); shiny = np.flatnonzero(((rough < .75) | (met > 0)) & ~mirror)

        def spec(E, D): Sp[:, shiny] += E.take(shiny, 1) * (np.minimum(self.ggx(N.take(shiny, 1), D if D.shape[1] == 1 else D.take(shiny, 1), -V.take(shiny, 1), rc.take(shiny)), 30) / np.maximum(dot(N.take(shiny, 1), D if D.shape[1] == 1 else D.take(shiny, 1)), f32(.05)))
        if self.has_sun:
            reps = (1, 1, 4)[q]; v = sum(self.sun_vis(X, N, rng, .012) for _ in range(reps)) / f32(reps); E = v * self.sunc; Es += E; spec(E, self.sd)
        if self.lights:
            cen = X.mean(1, keepdims=True); w = np.array([l[-1] / max(float(np.sum((l[1] - cen) ** 2)), .5) for l in self.lights]); order = np.argsort(-w)[:(2, 3, 8)[q]]; scale = f32(min(w.sum() / w[order].sum(), 1.5)); reps = (1, 1, 4)[q]
            for i in order:
                for _ in range(reps): E, D = self.lamp(i, X, N, rng); E = E * (scale / reps); Es += E; spec(E, D)
        A = atrous(im(full(np.concatenate([Es, Sp]))), im(Nf), im(Xf), im(Zf), pix, ((1, 2) if self.lights else (1,)) if q < 2 else (1,), small=True).reshape(6, n0).take(k, 1); Es, Sp = A[:3], A[3:]
        # ---- reflections
        env = Ei * (1 / PI); gl = np.flatnonzero(mirror)
        if len(gl):
            ng, Gg, Vg, rg = N.take(gl, 1), G.take(gl, 1), V.take(gl, 1), rough.take(gl); ng = unit(ng + (rng.random((3, len(gl)), dtype=f32) - f32(.5)) * (rg * rg * f32(.6))); rd = Vg - ng * (2 * dot(Vg, ng)); rd = unit(rd + Gg * np.maximum(f32(.03) - dot(rd, Gg), 0)); Lr, tt, _ = self.bounce(X.take(gl, 1), rd, rng, amb); ms = np.flatnonzero(tt < 0); Lr[:, ms] = self.skyT(rd.take(ms, 1)); h = np.flatnonzero(tt >= 0)
            em = sc.M[:, 9:12].take(sc.fm.take(tt.take(h)), 0).T; Lr[:, h] += em; cap = np.percentile(Lr, 97) * 2 + 1e-4; Lr = np.minimum(Lr, f32(cap)); Q = full(np.concatenate([Lr, np.ones((1, len(gl)), f32)]), 0, gl_ids := k[gl]); B = atrous(im(Q), im(Nf), im(Xf), im(Zf), pix, (1, 2) if q < 2 else (1,), small=True).reshape(4, n0).take(gl_ids, 1); Lr = np.where(rg < .12, Lr * f32(.5) + B[:3] / B[3] * f32(.5), B[:3] / B[3]); env[:, gl] = Lr * (1 - rg * f32(.6)) + env.take(gl, 1) * (rg * f32(.6))
        Fc = np.where(met > 0, alb * met, fres); S = Fc * env * (1 - rough * f32(.5)) + np.where(met > 0, alb, 1) * Sp * np.clip(fres, .02, 1); E = (Es + Ei) * ((1 - met) * (1 / PI)); out = np.zeros((3, n0), f32); ms = np.flatnonzero(~hitm)

        def shade(a, e, s_, em, t, l):
            c = a * e + s_ + em * np.where(em.sum(0) > 1.5, f32(1), a)
            if sc.haze > 0: f = np.exp(-f32(sc.haze) * (t * l)); c = c * f + col(sc.sky.hor * sc.sky.level * .9) * (1 - f)
            return c
        out[:, k] = shade(alb, E, S, M[9:12], tk, ln.take(k))
        if len(ms): out[:, ms] = self.skyT(D0.take(ms, 1))
        # ---- antialias edge pixels: extra primary samples that borrow the light of matching neighbours
        e = self.edges(im(mf), im(full(1 / tk, 0)), im(Gf)); ep = np.flatnonzero(e); nsub = (2, 4, 8)[q]; expo = self.expose(out, ev); img = self.tone(out, expo)
        if len(ep):
            jx = ((np.arange(nsub) + .5) / nsub).astype(f32); jy = ((np.arange(nsub) * .618034 + .3) % 1).astype(f32); own = np.repeat(ep, nsub); ds = rays(xx[own].astype(f32) + np.tile(jx, len(ep)), yy[own].astype(f32) + np.tile(jy, len(ep))); tri, t, u, v = self.tr.hit(o, ds); l = np.sqrt(dot(ds, ds)); Ds = ds / l; o2 = np.zeros((3, len(own)), f32); h = np.flatnonzero(tri >= 0); mi = np.flatnonzero(tri < 0)
            if len(mi): o2[:, mi] = self.skyT(Ds.take(mi, 1))
            if len(h):
                th = t.take(h); m2, N2, G2, a2, _, M2 = self.surf(tri.take(h), u.take(h), v.take(h), Ds.take(h, 1), th * l.take(h), pix); X2 = o + ds.take(h, 1) * th; ES = full(np.concatenate([E, S])); acc = np.zeros((6, len(h)), f32); ws = np.full(len(h), 1e-9, f32); tol = 1 / (th * pix * 2 + f32(1e-3)); y2, x2 = yy[own[h]], xx[own[h]]
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        i = np.clip(y2 + dy, 0, H - 1) * W + np.clip(x2 + dx, 0, W - 1); pd = dot(Xf.take(i, 1) - X2, G2) * tol; w = np.exp(-np.minimum(pd * pd, 30)) * np.maximum(dot(Gf.take(i, 1), G2), 0) * np.where(mf.take(i) == m2, f32(1), f32(.02)) + f32(1e-6); w = w * (f32(1) if dx == 0 and dy == 0 else f32(.6)); acc += ES.take(i, 1) * w; ws += w * (mf.take(i) >= 0)
                acc /= ws; o2[:, h] = shade(a2, acc[:3], acc[3:], M2[9:12], th, l.take(h))
            img[:, ep] = self.tone(o2, expo).reshape(3, len(ep), nsub).mean(2)
        return np.ascontiguousarray(np.moveaxis(im(img), 0, -1)), im(depth), dict(rays=self.tr.rays, edge=len(ep) / n0)

    @staticmethod
    def _full(A, k, n0, fill=0):
        B = np.full(A.shape[:-1] + (n0,), fill, A.dtype); B[..., k] = A; return B

    @staticmethod
    def upsample(gi, valid, hN, hX, X, N, G, t, k, W, hs, Hh, Wh, pix):
        fy = ((k // W) - hs // 2) / f32(hs); fx = ((k % W) - hs // 2) / f32(hs); y0 = np.floor(fy).astype(np.int32); x0 = np.floor(fx).astype(np.int32); wy = (fy - y0).astype(f32); wx = (fx - x0).astype(f32); E = np.zeros(X.shape, f32); ws = np.full(X.shape[1], 1e-9, f32); tol = 1 / (t * pix * hs * f32(1.5) + f32(1e-3)); vf = valid.astype(f32)
        for dy in (0, 1):
            for dx in (0, 1):
                i = np.clip(y0 + dy, 0, Hh - 1) * Wh + np.clip(x0 + dx, 0, Wh - 1); pd = dot(hX.take(i, 1) - X, G) * tol; c = np.maximum(dot(hN.take(i, 1), N), 0); c = c * c; w = ((wy if dy else 1 - wy) * (wx if dx else 1 - wx) + f32(.02)) * np.exp(-np.minimum(pd * pd, 30)) * (c * c) + f32(1e-5); w = w * vf.take(i); E += gi.take(i, 1) * w; ws += w
        return E / ws

    @staticmethod
    def edges(key, zi, G):
        H, W = key.shape; e = np.zeros((H, W), bool)
        for a, b in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))), ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):
            df = (key[a] != key[b]) | (np.abs(zi[a] - zi[b]) > .05 * np.maximum(zi[a], zi[b])) | (dot(G[(slice(None),) + a], G[(slice(None),) + b]) < .6); e[a] |= df; e[b] |= df
        return e.ravel()

    @staticmethod
    def expose(x, ev):
        l = x[1, ::3]; lo, md, hi = np.percentile(l, [2, 50, 93]); l = np.clip(l, lo, hi + 1e-6); key = np.exp(np.log(l + 1e-4).mean()) * .4 + md * .4 + l.mean() * .2; return f32(np.clip(.26 * np.exp(ev) / (key + 1e-5), 1e-3, 1e3))

    @staticmethod
    def tone(x, e): x = np.maximum(x, 0) * (e * f32(.8)); y = x * (2.51 * x + .03) / (x * (2.43 * x + .59) + .14); return np.clip(y, 0, 1).astype(f32) ** f32(1 / 2.2)


def atrous(A, N, X, Z, pix, steps, small=False):
    """Edge-aware wavelet filter on (C,H,W), guided by normals and plane distance."""
    H, W = A.shape[1:]; kk = (.375, .25, .0625); offs = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x] if small else [(y, x) for y in (-2, -1, 0, 1, 2) for x in (-2, -1, 0, 1, 2) if (y or x) and abs(x) + abs(y) < 4]
    tol = 1 / (Z * (pix * 2) + f32(1e-3))
    for st in steps:
        acc = A * f32(kk[0] ** 2); ws = np.full((H, W), kk[0] ** 2, f32)
        for dy, dx in offs:
            w0 = f32(kk[abs(dy)] * kk[abs(dx)]); dy, dx = dy * st, dx * st; a = (slice(max(0, -dy), H - max(0, dy)), slice(max(0, -dx), W - max(0, dx))); b = (slice(max(0, dy), H + min(0, dy)), slice(max(0, dx), W + min(0, dx))); c3 = (slice(None),)
            Na = N[c3 + a]; pd = dot(X[c3 + b] - X[c3 + a], Na) * tol[a] * f32(1 / st); c = np.maximum(dot(Na, N[c3 + b]), 0); c *= c; c *= c; w = np.exp(-np.minimum(pd * pd, 30)) * (c * c) * w0; acc[c3 + a] += A[c3 + b] * w; ws[a] += w
        A = acc / ws
    return A
