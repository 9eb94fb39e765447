/** The data layer under Node, on a run packed by Python beside the numbers it was packed from (LENS_FIXTURE). */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const from = (name) => import(`${process.env.LENS_MODULES}/${name}.js`);
const { LensData } = await from("data");
const { Frame, labelsOf, tokensAt } = await from("frame");
const { flowOf, positionAxis } = await from("axes");
const query = await from("query");
const { destination } = await from("keys");
const { fitted } = await from("fit");
const format = await from("format");
const { difference, measureOf, shade, SHADINGS } = await from("measures");

const fixture = JSON.parse(readFileSync(process.env.LENS_FIXTURE, "utf8"));
const bytes = (buffers) => Object.fromEntries(Object.entries(buffers).map(([name, text]) => [name, Uint8Array.from(Buffer.from(text, "base64"))]));
const read = ({ header, buffers }) => new LensData({ header: structuredClone(header), buffers: bytes(buffers) });
const close = (a, b, tolerance, what) => assert.ok(Math.abs(a - b) <= tolerance, `${what}: ${a} is not ${b}`);

/** Calls back for every cell with its offset and its index in the flat arrays of truth. */
function cells(data, visit) {
  const { sites, layers, positions } = data.header;
  for (let s = 0, i = 0; s < sites.length; s++) {
    for (let l = 0; l < layers.length; l++) {
      for (let p = 0; p < positions.length; p++, i++) visit(data.cell(s, l, p), i, p, s, l);
    }
  }
}

test("logits of candidates that are next to impossible come back", () => {
  const { packed, truth } = fixture.spread;
  const data = read(packed);
  cells(data, (cell, i, p) => {
    data.candidates(cell, p).forEach(({ prob, logit }, j) => {
      close(logit, truth.logit[i * data.k + j], 5e-3, "logit");
      close(prob, truth.prob[i * data.k + j], 3e-4, "prob");
    });
  });
});

test("a direction of a basis goes by its own number", () => {
  const { packed } = fixture.basis;
  const data = read(packed);
  const row = data.arrays.token[0];
  const number = data.arrays.ids[row] - 2 ** 20;
  assert.ok(number >= 0 && number < 100);
  assert.equal(data.candidates(0, 0)[0].id, number);
  assert.deepEqual(query.matching(data, `#${number}`, new Uint32Array(data.arrays.ids.length), 8), [row]);
});

test("directions of two bases are the same if their labels are", () => {
  const [one, two] = [read(fixture.basis.packed), read(fixture["other-basis"].packed)];
  const numbers = Array.from(two.arrays.ids, (_, row) => two.index(row));
  for (const _ of [1, 2]) two.match(one); // another view of the same runs matches them again
  const labels = new Set(Array.from(one.arrays.ids, (id, row) => (id < 2 ** 20 ? "" : one.raw(row))));
  two.arrays.ids.forEach((id, row) => {
    if (id < 2 ** 20) return;
    const theirs = one.row(id);
    assert.equal(two.index(row), numbers[row]);
    assert.equal(two.rowOf(numbers[row]), row);
    assert.equal(theirs >= 0, labels.has(two.raw(row)));
    if (theirs >= 0) assert.equal(one.raw(theirs), two.raw(row));
  });
  const matched = [...two.arrays.ids].filter((id) => id >= 2 ** 20 && one.row(id) >= 0);
  assert.ok(matched.length > 5);
  assert.ok([...two.arrays.ids].some((_, row) => two.raw(row) === "another"));
  const same = read(fixture.basis.packed);
  same.match(one);
  assert.deepEqual(same.arrays.ids, one.arrays.ids);
});

for (const name of ["small", "large", "hostile"]) {
  test(`every number of the ${name} run comes back`, () => {
    const { packed, truth } = fixture[name];
    const data = read(packed);
    const coarse = name === "large";
    cells(data, (cell, i, p) => {
      const candidates = data.candidates(cell, p);
      candidates.forEach(({ id, prob, share, logit, hit }, j) => {
        const n = i * data.k + j;
        assert.equal(id, truth.token_id[n]);
        close(prob / truth.prob[n], 1, 3e-4, "prob");
        close(share / truth.prob_topk[n], 1, 1e-3, "prob_topk");
        close(logit, truth.logit[n], 2e-3, "logit");
        assert.equal(hit, id === truth.targets[p]);
      });
      const rank = truth.target_rank[i];
      if (!coarse || rank < 64) assert.equal(data.targetRank(cell), rank);
      else close(data.targetRank(cell) / rank, 1, 0.03, "rank");
      close(data.entropy(cell), truth.entropy[i], coarse ? 1 / 32 : 1 / 8000, "entropy");
      close(data.kl(cell), truth.kl_final[i], coarse ? 0.05 : 1e-3, "kl");
      if (truth.target_prob[i] > 1e-13) close(data.targetProb(cell, p) / truth.target_prob[i], 1, coarse ? 0.065 : 3e-4, "target");
    });
  });
}

test("tracked tokens are known in every cell, others only where they are candidates or the target", () => {
  const { packed, truth } = fixture.tracked;
  const data = read(packed);
  cells(data, (cell, i, p) => {
    data.header.tracked.forEach((token, t) => {
      const standing = data.standing(cell, p, token);
      assert.equal(standing.rank, truth.tracked_rank[i * data.header.tracked.length + t]);
    });
    const absent = data.header.tokens.findIndex((_, row) => data.candidateOf(cell, row) < 0 && row !== data.header.targets[p] && !data.header.tracked.includes(row));
    if (absent >= 0) assert.equal(data.standing(cell, p, absent), null);
  });
});

test("each position's own tracked tokens are known there, in every cell", () => {
  const { packed, truth } = fixture.followed;
  const data = read(packed);
  const each = packed.header.followed;
  let elsewhere = 0;
  cells(data, (cell, i, p) => {
    for (let t = 0; t < each; t++) {
      const id = truth.tracked_id[p * each + t];
      const token = data.arrays.ids.indexOf(id);
      if (id < 0 || data.candidateOf(cell, token) >= 0 || token === data.header.targets[p]) continue;
      const standing = data.standing(cell, p, token);
      assert.equal(standing.rank, truth.tracked_rank[i * each + t]);
      close(standing.prob, truth.tracked_prob[i * each + t], 1e-5, "prob");
      elsewhere++;
    }
  });
  assert.ok(elsewhere);
});

test("an answer settles at the first layer from which it stays first", () => {
  const { packed, truth } = fixture.small;
  const data = read(packed);
  data.header.positions.forEach((_, p) => assert.equal(query.settled(data, p), truth.settled[p]));
});

test("no answer settles in a run without the model's last layer", () => {
  const { packed, truth } = fixture.short;
  const data = read(packed);
  assert.ok(truth.settled.some((layer) => layer >= 0));
  data.header.positions.forEach((_, p) => assert.equal(query.settled(data, p), -1));
});

test("a token is found at every position where it is a candidate, at its first layer", () => {
  const { packed, truth } = fixture.small;
  const data = read(packed);
  for (const [site] of data.header.sites.entries()) {
    const layers = data.header.layers.map((_, i) => i);
    const found = query.occurrences(data, site, layers, data.header.targets[0]);
    assert.deepEqual(found.map(({ position, layer }) => [position, layer]), truth.occurrences[site]);
  }
});

test("search puts equal texts first, then beginnings, and knows indices", () => {
  const data = read(fixture.small.packed);
  const frequency = query.counts(data, 2);
  assert.equal(frequency.reduce((a, b) => a + b), data.header.layers.length * data.header.positions.length * data.k);
  const texts = (wanted) => query.matching(data, wanted, frequency, 50).map((row) => data.raw(row).trim());
  const found = texts("the");
  assert.equal(found[0], "the");
  assert.ok(found.every((text) => text.includes("the")), found.join());
  const starts = found.map((text) => text.startsWith("the"));
  assert.deepEqual(starts, [...starts].sort((a, b) => b - a));
  const row = query.matching(data, "the", frequency, 1)[0];
  assert.deepEqual(query.matching(data, `#${data.arrays.ids[row]}`, frequency, 5), [row]);
  assert.deepEqual(query.matching(data, "", frequency, 5), []);
  assert.deepEqual(query.matching(data, "no such token", frequency, 5), []);
});

test("layers are chosen in the notation of --layers", () => {
  const layers = [0, 1, 2, 3, 4, 5, 6, 7];
  const cases = { "0-4": [0, 1, 2, 3, 4], "5-": [5, 6, 7], "-1": [7], "0,4,-1": [0, 4, 7], "-1,-2": [6, 7], "::4": [0, 4], "1:4": [1, 2, 3], "": layers, " 2 – 3 ": [2, 3] };
  for (const [spec, chosen] of Object.entries(cases)) assert.deepEqual(query.chosenLayers(spec, layers), chosen, spec);
  for (const spec of ["x", "9", "1-2-3", "::0", "--1"]) assert.equal(query.chosenLayers(spec, layers), null, spec);
  assert.deepEqual(query.chosenLayers("0-99999999999", layers), layers);
  assert.deepEqual(query.chosenLayers("-2", [0, 4, 7]), [4]);
  assert.equal(query.chosenLayers("-4", [0, 4, 7]), null);
  for (const chosen of ["", "0", "7", "0-4", "0,2-3,7", "1,3,5"]) assert.equal(query.writtenLayers(query.chosenLayers(chosen, layers), layers), chosen);
});

test("bytes are those of the text, or of the piece of a character that a token is", () => {
  assert.deepEqual(query.bytesOf(" é"), ["20", "c3", "a9"]);
  assert.deepEqual(query.bytesOf("\\xe2\\x80"), ["e2", "80"]);
  assert.deepEqual(query.bytesOf("\\n"), ["5c", "6e"]);
  assert.deepEqual(query.bytesOf(""), []);
  assert.deepEqual(query.bytesOf("👩"), ["f0", "9f", "91", "a9"]);
});

test("a growing run leaves what it was made from as it was: another view may be of the same", () => {
  const { packed, pieces } = fixture.growing;
  const header = structuredClone(packed.header);
  const views = [1, 2].map(() => new LensData({ header, buffers: bytes(packed.buffers) }));
  for (const { rows, buffers } of pieces) for (const view of views) view.append(rows, bytes(buffers));
  assert.deepEqual(header, packed.header);
  assert.deepEqual(views[0].header, views[1].header);
});

test("rows that arrive piece by piece make the same run", () => {
  const { packed, pieces, truth } = fixture.growing;
  const whole = read(fixture.small.packed);
  const data = read(packed);
  assert.equal(data.header.positions.length, 0);
  for (const { rows, buffers } of pieces) data.append(rows, bytes(buffers));
  assert.deepEqual(data.header.positions, whole.header.positions);
  cells(data, (cell, i, p, s, l) => {
    const same = whole.candidates(whole.cell(s, l, p), p);
    data.candidates(cell, p).forEach((candidate, j) => {
      assert.equal(candidate.id, same[j].id);
      assert.equal(candidate.raw, same[j].raw);
      close(candidate.logit, same[j].logit, 2e-3, "logit");
      assert.equal(candidate.hit, same[j].hit);
    });
    assert.equal(data.targetRank(cell), truth.target_rank[i]);
    close(data.kl(cell), truth.kl_final[i], 1e-5, "kl");
    assert.equal(data.arrays.ids[data.header.inputs[p]], truth.inputs[p]);
  });
});

test("two runs are on show by the union of their labels", () => {
  const [one, other] = [read(fixture.small.packed), read(fixture.tracked.packed)];
  const labels = labelsOf([one, other]);
  assert.deepEqual(labels.positions, [...new Set([...one.header.positions, ...other.header.positions])].sort((a, b) => a - b));
  const frame = new Frame(other, labels);
  labels.positions.forEach((p, i) => assert.equal(frame.position[i], other.header.positions.indexOf(p)));
  assert.equal(frame.cell(0, 0, labels.positions.findIndex((p) => !other.header.positions.includes(p))), -1);
});

test("measures shade from nothing to full, and say their scale", () => {
  const data = read(fixture.tracked.packed);
  const { sites } = data.header;
  for (const shade of Object.keys(SHADINGS)) {
    for (const over of ["all", "k"]) {
      const measure = measureOf(data, { shade, over, token: data.header.tracked[0], sites });
      assert.ok(measure.label && measure.low && measure.high);
      cells(data, (cell, i, p) => {
        const strength = measure.strength(measure.value(cell, p));
        assert.ok(strength >= 0 && strength <= 1, `${shade} ${strength}`);
        assert.ok(measure.text(measure.value(cell, p)).length <= 5, measure.text(measure.value(cell, p)));
      });
    }
  }
  const rank = measureOf(data, { shade: "rank", over: "all", token: -1, sites });
  assert.equal(rank.strength(0), 1);
  const change = difference(rank, rank, "rank");
  assert.equal(change.between(1, 3), 1); // a doubling of 1 + rank
  assert.ok(Number.isNaN(change.between(-1, 3)));
  const prob = measureOf(data, { shade: "prob", over: "all", token: -1, sites });
  const shift = difference(prob, prob, "prob");
  close(shift.between(0.25, 0.75), 0.5, 1e-12, "difference");
  assert.equal(shift.text(-0.5), "−.50");
  assert.equal(shift.text(0), "0");
});

for (const name of ["lacking", "lacking-large", "lacking-growing"]) {
  test(`a cell without numbers says so in every measure, and no other does: ${name}`, () => {
    const { packed, pieces = [], truth } = fixture[name];
    const data = read(packed);
    for (const { rows, buffers } of pieces) data.append(rows, bytes(buffers));
    const { sites } = data.header;
    cells(data, (cell, i, p, s, l) => {
      const lacks = l === 4 && p === 3;
      const token = data.top(cell);
      for (const shade of Object.keys(SHADINGS)) {
        for (const over of ["all", "k"]) {
          const measure = measureOf(data, { shade, over, token, sites });
          const value = measure.value(cell, p);
          if (lacks) assert.deepEqual([measure.text(value), measure.strength(value)], ["–", 0], shade);
          else if (shade !== "target" || over === "all") assert.notEqual(measure.text(value), "–", shade);
          const change = difference(measure, measure, shade);
          if (lacks) assert.equal(change.text(change.between(value, 1)), "–", shade);
        }
      }
      for (const { prob, share, logit } of data.candidates(cell, p)) {
        assert.deepEqual([prob, share, logit].map(Number.isNaN), Array(3).fill(lacks));
        if (lacks) assert.equal(format.signed(logit, 2), "–");
      }
      assert.equal(query.enters(data, s, [l], p, token), lacks ? -1 : l);
      assert.equal(query.occurrences(data, s, [l], token).some(({ position }) => position === p), !lacks);
    });
    const counted = sites.flatMap((_, s) => [...query.counts(data, s)]).reduce((a, b) => a + b);
    assert.equal(counted, data.k * sites.length * (data.header.layers.length * data.header.positions.length - 1));
    close(data.greatest("entropy", sites), Math.max(...truth.entropy), 1 / 32, "entropy");
  });
}

test("how far two runs are apart is the second's own measure, and so is where they part", () => {
  const { packed, truth } = fixture.apart;
  assert.equal(query.PARTED, truth.parted);
  const [first, second] = [read(fixture.small.packed), read(packed)];
  const { sites } = second.header;
  const choice = { shade: "apart", over: "all", token: -1, sites };
  const measure = difference(measureOf(first, choice), measureOf(second, choice), "apart");
  assert.equal(measure.label, "KL between the runs in nats");
  cells(second, (cell, i, p) => {
    close(second.apart(cell), truth.apart[i], 1e-4, "apart");
    assert.equal(measure.between(NaN, second.apart(cell)), second.apart(cell));
    assert.ok(Number.isNaN(first.apart(cell)));
    close(measure.strength(second.apart(cell)), truth.apart[i] / Math.max(...truth.apart), 1e-3, "strength");
    assert.equal(second.header.parts[p], truth.parts[p]);
    assert.deepEqual(first.header.parts, []);
  });
});

test("runs on show have one scale, whatever the greatest number of each", () => {
  const runs = [read(fixture.small.packed), read(fixture.other.packed)];
  for (const [shade, name] of [["rank", "target_rank"], ["entropy", "entropy"], ["kl", "kl_final"]]) {
    const choice = { shade, over: "all", token: -1, sites: ["resid_post"] };
    const own = runs.map((data) => measureOf(data, choice));
    const shared = runs.map((data) => measureOf(data, { ...choice, runs }));
    assert.notEqual(own[0].strength(1), own[1].strength(1), shade);
    assert.equal(shared[0].strength(1), shared[1].strength(1), shade);
    const widest = runs[0].greatest(name, ["resid_post"]) > runs[1].greatest(name, ["resid_post"]) ? own[0] : own[1];
    for (const measure of shared) assert.deepEqual([measure.low, measure.high], [widest.low, widest.high]);
  }
  const tops = runs.map((data) => measureOf(data, { shade: "prob", over: "k", token: -1, sites: ["resid_post"], runs }).label);
  assert.deepEqual(new Set(tops), new Set(["probability of the top token, among the top 5 or 3"]));
  assert.equal(runs[1].greatest("entropy", ["mlp_out"]), 0); // which it has not got
});

test("where runs go on differently, a position is of both", () => {
  const datas = [read(fixture.small.packed), read(fixture.other.packed)];
  const labels = labelsOf(datas);
  const frames = datas.map((data) => new Frame(data, labels));
  const axis = positionAxis(frames, false);
  const texts = (which, i) => datas.flatMap((data) => {
    const row = data.header[which][data.positionAt.get(labels.positions[i]) ?? -1] ?? -1;
    return row < 0 ? [] : [data.raw(row)];
  });
  let [unlike, alike] = [0, 0];
  labels.positions.forEach((position, i) => {
    const next = [...new Set(texts("targets", i))];
    unlike += next.length > 1;
    alike += next.length === 1;
    assert.equal(tokensAt(frames, "targets", i).length, next.length);
    const told = next.map((text) => JSON.stringify(text)).join(" → ");
    const flow = flowOf(frames, i);
    assert.ok(flow.endsWith(`, next is ${told}`) || flow.endsWith(`: next is ${told}`), flow);
    assert.equal(axis.text(i).split("→").length, next.length);
  });
  assert.ok(unlike > 3 && alike > 3, `${unlike}, ${alike}`); // the second run is longer: its token is there alone
  assert.equal(positionAxis(frames.slice(0, 1), false).text(labels.positions.length - 1).trim(), String(labels.positions.at(-1)));
});

test("no shade is that of a number which is not known", () => {
  for (const ramp of ["sure", "unsure", "more"]) assert.equal(shade(ramp, NaN), shade(ramp, 0));
});

test("probabilities are never rounded up to certainty", () => {
  assert.equal(format.percent(0.99999), ">99.9%");
  assert.equal(format.percent(0.5), "50.0%");
  assert.deepEqual([0.001, 1e-4, 5.8e-5, 5.8e-6, 1e-15].map(format.percent), ["0.10%", "0.010%", "0.006%", "5.8e−4%", "<1e−12%"]);
  assert.equal(format.brief(0.9989), ".99+");
  assert.equal(format.brief(0.9996), ".99+");
  assert.equal(format.brief(1), ".99+");
  assert.equal(format.count(123456), "123k");
  assert.equal(format.grouped(1234567), "1,234,567");
  assert.equal(format.quoted("a\u202eb"), '"a\\u{202e}b"');
});

test("of a model's folder the last part is its name, unless two would be the same", () => {
  assert.deepEqual(format.modelNames(["/models/a/step-9/", "./b", "C:\\models\\c"]), ["step-9", "b", "c"]);
  assert.deepEqual(format.modelNames(["org/model", "gpt2"]), ["org/model", "gpt2"]);
  assert.deepEqual(format.modelNames(["/a/final", "/b/final"]), ["/a/final", "/b/final"]);
  assert.deepEqual(format.modelNames(["/a/final", "/a/final"]), ["final", "final"]);
});

test("cells fill the view, none cut off at either end, unless too many would", () => {
  const table = { rows: 500, cols: 80, rowHeight: 26, colWidth: 92, leastWidth: 58, maxColWidth: 168, headWidth: 140, headHeight: 27, nodesPerCell: 2 };
  const some = fitted(table, 800, 400);
  assert.deepEqual([some.rowH, some.colW, some.headW], [26, 94, 142]); // seven in the 660 pixels beside the head, and 2 more
  assert.ok(some.rows * 26 > 400 - 27 && some.cols * 94 > 800 - 140);
  assert.equal(fitted(table, 140 + 183, 400).colW, 168); // one, and no wider than that
  assert.equal(fitted(table, 140 + 50, 400).colW, 92);
  assert.deepEqual(fitted({ ...table, cols: 10 }, 800, 400), { rows: some.rows, cols: 10, rowH: 26, colW: 66, headW: 140 });
  const two = fitted({ ...table, cols: 2 }, 800, 400);
  assert.deepEqual([two.colW, two.headW], [168, 140]);
  const many = fitted(table, 3000, 2000);
  assert.ok(many.rows * many.cols * 2 <= 900 && many.rowH * many.rows > 2000 - 27 && many.colW * many.cols > 3000 - 140);
});

test("keys move within the table", () => {
  const table = { active: [5, 5], rows: 10, cols: 8, page: 4 };
  const press = (key, more = {}) => destination({ key, altKey: false, ctrlKey: false, metaKey: false, ...more }, table);
  assert.deepEqual(press("ArrowUp"), [4, 5]);
  assert.deepEqual(press("PageDown"), [9, 5]);
  assert.deepEqual(press("Home"), [5, 0]);
  assert.deepEqual(press("End", { ctrlKey: true }), [9, 7]);
  assert.deepEqual(press("ArrowRight", { metaKey: true }), [5, 7]);
  assert.equal(press("ArrowLeft", { altKey: true }), null);
  assert.equal(press("x"), null);
});
