//! A run as one page that needs nothing else: verdict, table, judges, and a timeline of faults, operations
//! and silences of media above each other.

use std::fmt::Write as _;

use super::table;
use crate::Verdict;
use crate::check::Opinion;
use crate::history::Kind;
use crate::run::conduct::Outcome;
use crate::run::timeline::{Fault, Outcome as Installation};

/// Pixels of a second.
const SECOND: f64 = 16.0;
/// Room for the names of the lanes.
const LEFT: f64 = 120.0;
/// Height of a lane, and between two.
const LANE: f64 = 20.0;
const GAP: f64 = 4.0;
/// Height of the chart of operations.
const CHART: f64 = 90.0;
/// Nanoseconds of a step of that chart.
const STEP: u64 = 250_000_000;
/// Silences of media shorter than this are not drawn, in milliseconds.
const SILENCE_MIN_MS: f64 = 40.0;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --dim: #66707d; --line: #d8dde4; --back: #fff; --card: #f6f8fa;
  --good: #1a7f4b; --bad: #c0362c; --doubt: #9a6700; --ok: #4c8dd6; --info: #d99a2b; --fail: #9aa4b1; --media: #a83279; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --dim: #98a2b0; --line: #333c48; --back: #14181d;
  --card: #1b2128; --good: #4cc38a; --bad: #ff7b72; --doubt: #e3b341; --ok: #58a6ff; --info: #e3b341; --media: #e07bbd; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto; max-width: 1180px;
  padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.sub { color: var(--dim); margin: .2rem 0 1.2rem; }
.verdict { display: inline-block; padding: .3rem .8rem; border-radius: 6px; color: #fff; font-weight: 600; }
.good { background: var(--good); } .bad { background: var(--bad); } .doubt { background: var(--doubt); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th { text-align: left; color: var(--dim); font-weight: 600; }
td, th { padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th.n { text-align: right; } td:first-child { white-space: nowrap; } td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.v { color: var(--bad); } .u { color: var(--doubt); } .h { color: var(--good); }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); } svg .name { fill: var(--ink); }
.legend span { margin-right: 1.2rem; color: var(--dim); font-size: .85rem; } .legend i { display: inline-block; width: .8rem; height: .8rem;
  border-radius: 2px; margin-right: .35rem; vertical-align: -1px; }
";

/// The page.
pub(crate) fn of(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let (class, word) = match outcome.verdict() {
        Verdict::Holds => ("good", "every check held"),
        Verdict::Violated(_) => ("bad", "violated"),
        _ => ("doubt", "proves nothing"),
    };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{name}: {word}</title><style>{STYLE}</style><h1>{name} <span class=\"verdict {class}\">{word}</span></h1>\
         <p class=sub>seed {}, {} nodes, {} faults, {:.0} s, {:.0} operations a second before the first fault, \
         {} sessions resumed, {} begun anew</p>",
        plan.seed,
        plan.nodes,
        outcome.faults.len(),
        outcome.lasted_s,
        outcome.baseline_rate,
        outcome.resumes,
        outcome.rejoins,
        name = escaped(&plan.name),
    );
    violations(&mut page, &outcome.opinions);
    page.push_str("<h2>Timeline</h2><p class=legend>");
    for (colour, name) in [
        ("var(--ok)", "acknowledged"),
        ("var(--info)", "outcome unknown"),
        ("var(--fail)", "refused"),
        ("var(--bad)", "fault"),
        ("var(--doubt)", "not whole yet"),
        ("var(--media)", "media silent"),
    ] {
        let _ = write!(
            page,
            "<span><i style=\"background:{colour}\"></i>{name}</span>"
        );
    }
    page.push_str("</p><div class=scroll>");
    timeline(&mut page, outcome);
    page.push_str("</div>");
    figures(&mut page, outcome);
    judges(&mut page, &outcome.opinions);
    faults(&mut page, outcome);
    page.push_str("</html>");
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn violations(page: &mut String, opinions: &[Opinion]) {
    let told = |page: &mut String, class: &str, judge: &str, what: &String| {
        let _ = write!(
            page,
            "<p class={class}><b>{judge}</b>: {}</p>",
            escaped(what)
        );
    };
    for opinion in opinions {
        for what in &opinion.violations {
            told(page, "v", opinion.judge, what);
        }
        for what in &opinion.undecided {
            told(page, "u", opinion.judge, what);
        }
    }
}

fn x(ns: u64) -> f64 {
    LEFT + ns as f64 / 1e9 * SECOND
}

/// Lanes: the operations, each node's faults, each probe's silences.
fn timeline(page: &mut String, outcome: &Outcome) {
    let end = outcome.operations.last().map_or(0, |last| last.time);
    let nodes = outcome.plan.nodes as usize;
    let lanes = nodes + 1 + outcome.probes.len();
    let top = CHART + 24.0;
    let height = top + lanes as f64 * (LANE + GAP) + 24.0;
    let width = x(end) + 40.0;
    let _ = write!(
        page,
        "<svg width={width:.0} height={height:.0} role=img aria-label=\"timeline\">"
    );
    seconds(page, end, height);
    chart(page, outcome, end);
    let y = |lane: usize| top + lane as f64 * (LANE + GAP);
    let name = |page: &mut String, lane: usize, text: &str| {
        let _ = write!(
            page,
            "<text class=name x=8 y={:.0}>{}</text>",
            y(lane) + 14.0,
            escaped(text)
        );
    };
    name(page, 0, "links, all");
    for node in 1..=nodes {
        name(page, node, &format!("node {node}"));
    }
    for fault in &outcome.faults {
        if fault.outcome != Installation::Installed {
            continue;
        }
        let lanes: Vec<usize> = if fault.hit.is_empty() {
            vec![0]
        } else {
            fault.hit.iter().map(|id| *id as usize).collect()
        };
        for lane in lanes {
            bar(
                page,
                fault.at,
                fault.healed,
                y(lane),
                "var(--bad)",
                &fault.told,
            );
            let told = format!("not whole yet after {}", fault.told);
            bar(
                page,
                fault.healed,
                fault.recovered,
                y(lane),
                "var(--doubt)",
                &told,
            );
        }
    }
    for (number, probe) in outcome.probes.iter().enumerate() {
        let lane = nodes + 1 + number;
        name(page, lane, &format!("media {}", probe.stream.name));
        for pair in probe.stream.arrivals.windows(2) {
            let silence = pair[1].at.saturating_sub(pair[0].at) as f64 / 1e6;
            if silence >= SILENCE_MIN_MS {
                let told = format!("silent for {silence:.0} ms");
                bar(page, pair[0].at, pair[1].at, y(lane), "var(--media)", &told);
            }
        }
    }
    page.push_str("</svg>");
}

fn bar(page: &mut String, from: u64, to: u64, y: f64, colour: &str, told: &str) {
    let width = (x(to) - x(from)).max(1.5);
    let _ = write!(
        page,
        "<rect x={:.1} y={y:.0} width={width:.1} height={LANE} rx=2 fill=\"{colour}\" opacity=0.85><title>{}</title></rect>",
        x(from),
        escaped(told)
    );
}

fn seconds(page: &mut String, end: u64, height: f64) {
    for second in (0..=end / 1_000_000_000).step_by(5) {
        let at = x(second * 1_000_000_000);
        let _ = write!(
            page,
            "<line x1={at:.1} x2={at:.1} y1=0 y2={:.0} stroke=\"var(--line)\"/><text x={:.1} y={:.0}>{second} s</text>",
            height - 18.0,
            at + 2.0,
            height - 6.0
        );
    }
}

/// How many operations ended in each step of time, by how they ended.
fn chart(page: &mut String, outcome: &Outcome, end: u64) {
    let steps = (end / STEP + 1) as usize;
    let mut counts = vec![[0_u32; 3]; steps];
    for operation in &outcome.operations {
        let kind = match operation.kind {
            Kind::Ok => 0,
            Kind::Info if operation.process != "nemesis" => 1,
            Kind::Fail => 2,
            _ => continue,
        };
        counts[(operation.time / STEP) as usize][kind] += 1;
    }
    // The reads of all keys at the end would make everything else small: what is higher is cut off.
    let mut sums: Vec<u32> = counts.iter().map(|one| one.iter().sum()).collect();
    sums.sort_unstable();
    let usual = sums.get(sums.len() * 97 / 100).copied().unwrap_or(1);
    let most = f64::from(usual.max(1)) * 1.2;
    let width = STEP as f64 / 1e9 * SECOND;
    for (step, kinds) in counts.iter().enumerate() {
        let mut below = 0.0;
        for (count, colour) in kinds
            .iter()
            .zip(["var(--ok)", "var(--info)", "var(--fail)"])
        {
            let height = (f64::from(*count) / most * CHART).min(CHART - below);
            if height > 0.0 {
                let _ = write!(
                    page,
                    "<rect x={:.1} y={:.1} width={:.1} height={height:.1} fill=\"{colour}\"/>",
                    x(step as u64 * STEP),
                    8.0 + CHART - below - height,
                    width - 0.6
                );
            }
            below += height;
        }
    }
    let _ = write!(
        page,
        "<text class=name x=8 y=20>operations</text><text x=8 y=36>top: {:.0}/s</text>",
        most * 1e9 / STEP as f64
    );
}

fn figures(page: &mut String, outcome: &Outcome) {
    page.push_str(
        "<h2>Figures</h2><div class=scroll><table><tr><th>fault<th class=n>n<th class=n>no write acknowledged, ms\
         <th class=n>whole again after, ms<th class=n>media silent, ms<th class=n>violations in its runs",
    );
    let spread = |spread: crate::run::timeline::Spread| {
        format!("{:.0} / {:.0} / {:.0}", spread.p50, spread.p99, spread.max)
    };
    for row in table::rows(&[outcome]) {
        let _ = match &row.missing {
            Some(why) => write!(
                page,
                "<tr><td>{}<td colspan=5 class=u>not covered: {}",
                row.fault,
                escaped(why)
            ),
            None => write!(
                page,
                "<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}",
                row.fault,
                row.n,
                spread(row.unavailable),
                spread(row.recovery),
                spread(row.media),
                row.violations
            ),
        };
    }
    page.push_str("</table></div><p class=sub>p50 / p99 / max</p>");
}

fn judges(page: &mut String, opinions: &[Opinion]) {
    page.push_str("<h2>Judges</h2><div class=scroll><table><tr><th>judge<th>says<th>looked at");
    for opinion in opinions {
        let (class, says) = match (opinion.count, opinion.undecided.len()) {
            (0, 0) => ("h", "holds".to_owned()),
            (0, _) => ("u", "undecided".to_owned()),
            (count, _) => ("v", format!("{count} violations")),
        };
        let _ = write!(
            page,
            "<tr><td>{}<td class={class}>{says}<td>{}",
            opinion.judge,
            escaped(&opinion.looked_at)
        );
    }
    page.push_str("</table></div>");
}

fn faults(page: &mut String, outcome: &Outcome) {
    page.push_str(
        "<h2>Faults</h2><div class=scroll><table><tr><th>at<th>what<th>for<th>whole again after<th>remarks",
    );
    for fault in &outcome.faults {
        let _ = write!(
            page,
            "<tr><td class=n>{:.1} s<td>{}<td class=n>{:.2} s<td class=n>{:.2} s<td>{}",
            fault.at as f64 / 1e9,
            escaped(&fault.told),
            fault.healed.saturating_sub(fault.at) as f64 / 1e9,
            fault.recovered.saturating_sub(fault.healed) as f64 / 1e9,
            escaped(&remarks(fault))
        );
    }
    page.push_str("</table></div>");
    if !outcome.errors.is_empty() {
        page.push_str("<h2>Logged as errors</h2><div class=scroll><table>");
        for (error, times) in &outcome.errors {
            let _ = write!(page, "<tr><td class=n>{times}<td>{}", escaped(error));
        }
        page.push_str("</table></div>");
    }
    if !outcome.not_covered.is_empty() {
        page.push_str("<h2>Not covered on this machine</h2>");
        for fault in &outcome.not_covered {
            let _ = write!(page, "<p class=u>{}</p>", escaped(fault));
        }
    }
}

fn remarks(fault: &Fault) -> String {
    let mut remarks = fault.remarks.clone();
    match &fault.outcome {
        Installation::Installed => {}
        Installation::Missing(why) => remarks.push(format!("not covered: {why}")),
        Installation::Indeterminate(why) => remarks.push(format!("perhaps in force: {why}")),
    }
    remarks.join("; ")
}
