// Sizes, arguments and shared memory of the persistent kernel (persistent.cu explains it), from the numbers that shape.py defines.
#pragma once
constexpr int BLOCK = 64*128;              // bytes of 64 rows and 64 columns of bf16, as activations lie
constexpr int HEAD = D/HEADS;
constexpr int PARTS = NCTA/HEADS;          // CTAs of a head
constexpr int BC = FP8 ? 128 : 64;         // columns of a block of 128 bytes a row, of what maps multiply; of attention it is 64
constexpr int KB = D/BC, HEADB = HEAD/64, UPB = 4*D/8/BC;  // blocks of a row, a head, an eighth of the MLP
constexpr int QC = D/NCTA, NU = 4*D/NCTA, ND = D/16;       // columns of a CTA: queries (keys, values), up, output and down
constexpr int NJ = ND/8, PER = NJ/8;       // groups of 8 columns of a tile, and those of a consumer warp
constexpr int SLOTS = PARTS*QC/8;          // sums of squares of a row and a head
constexpr int ABYTES = BLOCK*BPS;
constexpr bool STAGED = 64*ND*4 <= ASLOTS*ABYTES;              // partial sums fit into the ring of activations
constexpr int QKSLOTS = HEADB*(BPS == 1 ? 2 : 1);              // slots of a head's queries and keys
constexpr bool HOLDS = QKSLOTS <= ASLOTS;
// A phase that waits for nobody may be brought whole before the consumers begin: then warps 9 and 10 must not get further ahead.
constexpr bool RUNS_AHEAD = KB/2/BPS <= ASLOTS;

enum Kind : u32 { QKV, ATTEND, UP, DOWN, END_STEP, END, KEYS_VALUES, QUERY, GATE, GATED_UP };
FN constexpr int padded(int columns) { return (columns + 15)/16*16; }  // for two warpgroups
// Columns that a CTA finishes, of a map whose K is split over a pair.
FN constexpr int columns_of(u32 kind) { return kind == QKV ? 3*QC : kind == KEYS_VALUES ? 2*QC : kind == QUERY ? QC : NU; }
FN constexpr bool into_stream(u32 kind) { return kind == ATTEND || (kind >= DOWN && kind <= END); }
FN constexpr int slot_rows(u32 kind) { return into_stream(kind) ? ND : 2*padded(columns_of(kind)); }
FN constexpr int k_blocks(u32 kind) { return kind == ATTEND ? HEADB : into_stream(kind) ? UPB : KB/2; }
FN constexpr bool has_norm(u32 kind) { return kind == ATTEND || !into_stream(kind); }

// persistent.cu says what a kind does, layout.py in what order weights lie.
struct Phase {
  const char* weights; u32 bytes, kind;    // bytes: of a CTA
  const float* scale;                      // of e4m3 weights, for each row of the map; null: they are bf16
  // All float32. Maps behind a norm: bias, colsum, gain of queries and keys (QKV, QUERY). Maps into the stream: bias, gain of the
  // next norm, output's gain (END_STEP, END), embedding of the next time (END_STEP).
  const float *p0, *p1, *p2, *p3;
  const char* input;                       // of maps behind a norm
  char *k, *v; float* key_squares;         // that QKV and KEYS_VALUES write, and ATTEND reads
  const float* positions;                  // END_STEP
  float c1, c2;
  u32 dep, dep2;                           // phases whose counters say that the activations are there; dep2: the keys
};
struct Args {
  const Phase* phases; u32 num_phases; u32* counters;
  char *acopy, *hidden;                    // blocks of 64 x BC, swizzled, bf16 or e4m3
  char *gates, *q;                         // bf16, rows of 4 D; blocks of 64 x 64, swizzled
  float *partial, *stats, *query_squares;
  const float *z0, *positions, *time0, *gain0; float* latents;
  u32* fault;                              // who waited too long, for cuda-gdb: after the trap the host cannot read it
};

// Shared memory: rings, residual stream, per-column numbers (double), halves from the other CTA, norms (double), sums, barriers.
constexpr int NPAR = (FP8 ? 5 : 4)*ND;
constexpr int XBYTES = 256*16*(NU > padded(3*QC) ? NU : padded(3*QC))/16;  // float4 of each thread and 8 columns
constexpr int AT_A = WSLOTS*WBYTES;
constexpr int AT_X = AT_A + ASLOTS*ABYTES;
constexpr int AT_PAR = AT_X + 2*PER*2*256*4;
constexpr int AT_HALF = AT_PAR + 2*NPAR*4;
constexpr int AT_STAT = AT_HALF + XBYTES;
constexpr int AT_RED = AT_STAT + 2*2*64*4;
constexpr int AT_BARS = AT_RED + 8*8*2*4;
static_assert(AT_BARS + 8*(2*WSLOTS + 2*ASLOTS + 8 + 2) <= SHARED_BYTES, "shape.py counts less shared memory");

struct Shared {
  u32 base, wlow, alow, wfull, wempty, afull, aempty, statbar, seen, pfull, pempty, xfull, xfree, there;
  float *par, *xs, *zs, *stat, *red;
};
struct Place { int cta, tile, s, head, warp, lane, tid, group; };

// A byte of a row of a block of 64 columns: 16-byte unit u of row r lies at unit u XOR (r mod 8).
FN char* swizzled(char* block, int row, int byte) { return block + row*128 + (((byte >> 4) ^ (row & 7)) << 4) + (byte & 15); }

// A column of a row of what maps multiply.
FN char* activation(char* blocks, int row, int col) {
  return swizzled(blocks + col/BC*BLOCK, row, col % BC*(128/BC));
}
FN void put8(char* to, const float (&y)[8]) {
  if (FP8) *(uint2*)to = make_uint2(pack4_e4m3(y[0], y[1], y[2], y[3]), pack4_e4m3(y[4], y[5], y[6], y[7]));
  else *(uint4*)to = pack8(y);
}
FN void put2(char* to, float low, float high) {
  if (FP8) *(u16*)to = pack_e4m3(low, high);
  else *(u32*)to = pack(low, high);
}

FN void lay_out(Shared& S, char* memory) {
  S.base = shared_address(memory); S.wlow = descriptor_low(S.base); S.alow = descriptor_low(S.base + AT_A);
  S.xs = (float*)(memory + AT_X); S.zs = S.xs + PER*2*256;
  S.stat = (float*)(memory + AT_STAT); S.red = (float*)(memory + AT_RED);
  u32 bars = S.base + AT_BARS;
  S.wfull = bars; S.wempty = bars + 8*WSLOTS; S.afull = bars + 16*WSLOTS; S.aempty = S.afull + 8*ASLOTS;
  S.statbar = S.aempty + 8*ASLOTS; S.seen = S.statbar + 16; S.pfull = S.seen + 16; S.pempty = S.pfull + 16; S.xfull = S.pempty + 16;
  S.xfree = S.xfull + 8;
}

FN void init_barriers(const Shared& S) {
  for (int i = 0; i < WSLOTS; i++) { bar_init(S.wfull + 8*i, 1); bar_init(S.wempty + 8*i, 8); }
  for (int i = 0; i < ASLOTS; i++) { bar_init(S.afull + 8*i, 1); bar_init(S.aempty + 8*i, 8); }
  bar_init(S.statbar, 1); bar_init(S.statbar + 8, 1); bar_init(S.seen, 1); if (RUNS_AHEAD) bar_init(S.seen + 8, 1); bar_init(S.xfull, 1); bar_init(S.xfree, 1);
  for (int i = 0; i < 2; i++) { bar_init(S.pfull + 8*i, 1); bar_init(S.pempty + 8*i, 8); }
  bar_inits_seen();
}
