//! What was measured, as a table and as JSON.

use std::fmt::Write;
use std::time::Duration;

use crate::bench::tracer::Variant;

/// One run of the load.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub round: usize,
    pub connections: u64,
    pub wall_ns: u64,
    /// Of the load, both its threads.
    pub cpu_ns: u64,
    pub tracer_cpu_ns: u64,
    /// Of all processors, whoever used them.
    pub host_busy_ns: u64,
}

impl Sample {
    fn per_connection_us(&self, ns: u64) -> f64 {
        ns as f64 / self.connections as f64 / 1e3
    }
}

/// All that a run of the benchmark found.
pub struct Findings {
    pub machine: Vec<(&'static str, String)>,
    pub samples: Vec<(Variant, Vec<Sample>)>,
    pub ready: Vec<Duration>,
    /// The long round: what was made, and what the log says.
    pub long: Option<Long>,
}

pub struct Long {
    pub seconds: f64,
    pub connections: u64,
    pub logged: u64,
    pub lines: u64,
    pub bytes: u64,
    pub lost: String,
    pub is_whole: bool,
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// Ratios to the untraced sample of the same round: what disturbs a whole round cancels out.
fn ratios(findings: &Findings, samples: &[Sample]) -> Vec<f64> {
    let untraced = findings.samples.iter().find(|(variant, _)| *variant == Variant::Untraced);
    let untraced = untraced.map_or(&[][..], |(_, samples)| samples);
    let cost = |sample: &Sample| sample.per_connection_us(sample.cpu_ns);
    let pairs = samples.iter().filter_map(|sample| {
        let base = untraced.iter().find(|base| base.round == sample.round)?;
        Some(cost(sample) / cost(base))
    });
    pairs.collect()
}

/// The table for people, in Markdown.
pub fn table(findings: &Findings) -> String {
    let mut text = String::new();
    for (name, value) in &findings.machine {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text += "\n| | load's CPU, µs/conn. | ratio (least–most) | tracer's CPU, µs/conn. | host busy, µs/conn. | connections/s |\n";
    text += "| --- | ---: | ---: | ---: | ---: | ---: |\n";
    for (variant, samples) in &findings.samples {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
        let ratios = ratios(findings, samples);
        let (least, most) = ratios
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(least, most), &ratio| (least.min(ratio), most.max(ratio)));
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} ({least:.2}–{most:.2}) | {:.2} | {:.2} | {:.0} |",
            variant.name(),
            of(|sample| sample.per_connection_us(sample.cpu_ns)),
            median(ratios),
            of(|sample| sample.per_connection_us(sample.tracer_cpu_ns)),
            of(|sample| sample.per_connection_us(sample.host_busy_ns)),
            of(|sample| sample.connections as f64 / sample.wall_ns as f64 * 1e9),
        );
    }
    if let Some(long) = &findings.long {
        let verdict = if long.is_whole { "nothing lost" } else { "NOT WHOLE" };
        let _ = writeln!(
            text,
            "\n{:.0} s without pause: {verdict}: {} connections made, {} in the log ({} lines, {} MiB compressed); its summary says lost: {}",
            long.seconds,
            long.connections,
            long.logged,
            long.lines,
            long.bytes >> 20,
            long.lost
        );
    }
    if !findings.ready.is_empty() {
        let ms: Vec<f64> = findings.ready.iter().map(|ready| ready.as_secs_f64() * 1e3).collect();
        let most = ms.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\nready after {:.0} ms (median of {}, most {most:.0} ms)",
            median(ms.clone()),
            ms.len()
        );
    }
    text
}

/// The same, with every sample.
pub fn json(findings: &Findings) -> String {
    let string = |text: &str| {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(char::is_control, " ");
        format!("\"{escaped}\"")
    };
    let machine: Vec<_> =
        findings.machine.iter().map(|(name, value)| format!("{}:{}", string(name), string(value))).collect();
    let variants: Vec<_> = findings.samples.iter().map(|(variant, samples)| {
        let samples: Vec<_> = samples.iter().map(|s| format!(
            "{{\"round\":{},\"connections\":{},\"wall_ns\":{},\"cpu_ns\":{},\"tracer_cpu_ns\":{},\"host_busy_ns\":{}}}",
            s.round, s.connections, s.wall_ns, s.cpu_ns, s.tracer_cpu_ns, s.host_busy_ns
        )).collect();
        let ratios = ratios(findings, samples_of(findings, *variant));
        format!("{{\"variant\":{},\"ratio_median\":{:.4},\"samples\":[{}]}}", string(variant.name()), median(ratios), samples.join(","))
    }).collect();
    let ready: Vec<_> = findings.ready.iter().map(|ready| ready.as_nanos().to_string()).collect();
    let long = findings.long.as_ref().map_or("null".to_owned(), |long| {
        format!(
            "{{\"seconds\":{},\"connections\":{},\"logged\":{},\"lines\":{},\"bytes\":{},\"lost\":{},\"is_whole\":{}}}",
            long.seconds, long.connections, long.logged, long.lines, long.bytes, long.lost, long.is_whole
        )
    });
    format!(
        "{{\"machine\":{{{}}},\"variants\":[{}],\"ready_ns\":[{}],\"long\":{long}}}\n",
        machine.join(","),
        variants.join(","),
        ready.join(",")
    )
}

fn samples_of(findings: &Findings, wanted: Variant) -> &[Sample] {
    findings.samples.iter().find(|(variant, _)| *variant == wanted).map_or(&[], |(_, samples)| samples)
}

#[cfg(test)]
mod tests {
    use super::{Findings, Sample, json, median, table};
    use crate::bench::tracer::Variant;

    #[test]
    fn median_of_even_and_odd() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn ratio_is_taken_within_a_round() {
        let sample = |round, cpu_ns| Sample {
            round,
            connections: 1000,
            wall_ns: 1_000_000_000,
            cpu_ns,
            tracer_cpu_ns: 0,
            host_busy_ns: 0,
        };
        // The second round was disturbed, and so was what is compared in it.
        let samples = vec![
            (Variant::Untraced, vec![sample(0, 10_000_000), sample(1, 30_000_000)]),
            (Variant::Record, vec![sample(0, 12_000_000), sample(1, 36_000_000)]),
        ];
        let findings = Findings { machine: vec![], samples, ready: vec![], long: None };
        assert!(
            table(&findings).contains("| portwatch record | 24.00 | 1.20 (1.20–1.20) |"),
            "{}",
            table(&findings)
        );
        assert!(json(&findings).contains("\"ratio_median\":1.2000"), "{}", json(&findings));
    }
}
