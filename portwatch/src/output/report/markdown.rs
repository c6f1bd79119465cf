//! The report for a ticket or a pull request.

use std::fmt::Write;

use super::words::{blamed, duration, evidence, grouped, number, percent, seconds, who};
use crate::diagnosis::report::Report;
use crate::output::escape::printable;

pub fn markdown(report: &Report, top: usize) -> String {
    let mut page = String::new();
    // A string takes every write.
    let _ = write(&mut page, report, top);
    page
}

fn write(page: &mut String, report: &Report, top: usize) -> std::fmt::Result {
    let window = &report.window;
    let hosts: Vec<String> = window.hosts.iter().map(|host| code(host)).collect();
    writeln!(page, "# Port report\n")?;
    writeln!(page, "{} on {}.", duration(window.duration_ns as f64), hosts.join(", "))?;
    if !window.complete {
        writeln!(page, "\n**The log was cut short:** what is here is true, more may have happened.")?;
    }
    let lost: u64 = report.lost.values().flat_map(|reasons| reasons.values()).sum();
    if lost > 0 {
        writeln!(page, "\n**{} events were lost:** the numbers are too low.", grouped(lost))?;
    }
    writeln!(page, "\n## Findings\n")?;
    if report.findings.is_empty() {
        writeln!(page, "Healthy: no findings.")?;
    }
    for finding in report.findings.iter().take(top) {
        let to = finding.destination.as_deref().map_or(String::new(), |to| format!(" to {}", code(to)));
        writeln!(page, "### {}: {}\n", finding.verdict, finding.severity.name())?;
        writeln!(page, "- **who:** {}{to}", code(&blamed(finding)))?;
        if let Some(site) = &finding.call_site {
            writeln!(page, "- **at:** {}", code(site))?;
        }
        writeln!(page, "- **seen:** {}", evidence(finding).join("; "))?;
        writeln!(page, "- **confidence:** {:.2}", finding.confidence)?;
        let links: Vec<String> = finding.links.iter().map(|link| format!("<{link}>")).collect();
        writeln!(page, "- **do:** {} {}", finding.advice, links.join(" "))?;
        for knob in &finding.knobs {
            let then = knob.then.as_deref().map_or(String::new(), |then| format!(" → {then}"));
            writeln!(page, "- `{} = {}`{then}: {}", knob.sysctl, knob.now, knob.note)?;
        }
        writeln!(page)?;
    }
    writeln!(page, "\n## Call sites by port-seconds\n")?;
    writeln!(page, "| port-seconds | connections | ports/s | held | failed | p50 | who | to | call site |")?;
    writeln!(page, "| ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |")?;
    for row in report.call_sites.iter().take(top) {
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            number(row.port_seconds),
            grouped(row.connections),
            number(row.ports_per_s),
            grouped(row.held_now),
            grouped(row.failures.values().sum()),
            row.lifetime_ns.p50.map_or("".to_owned(), |ns| duration(ns as f64)),
            code(&who(row)),
            row.destination.as_deref().map_or(String::new(), code),
            row.call_site.as_deref().map_or(String::new(), code),
        )?;
    }
    writeln!(page, "\n## Pools\n")?;
    writeln!(
        page,
        "| used | live | TIME_WAIT | bound | capacity | rate/s | carries/s | full in | from | to |"
    )?;
    writeln!(page, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |")?;
    for pool in report.pools.iter().take(top) {
        let maybe = |value: Option<String>| value.unwrap_or_default();
        let to =
            pool.raddr.as_deref().zip(pool.rport).map(|(address, port)| format!("{address} port {port}"));
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            maybe(pool.utilization.map(percent)),
            grouped(pool.in_use.live),
            grouped(pool.in_use.time_wait),
            maybe(pool.in_use.bound.map(grouped)),
            maybe(pool.capacity.map(grouped)),
            maybe(pool.rate_per_s.map(number)),
            maybe(pool.sustainable_per_s.map(number)),
            maybe(pool.exhaustion_in_s.map(seconds)),
            pool.laddr,
            maybe(to),
        )?;
    }
    Ok(())
}

/// Untrusted text, which neither ends the span nor the cell that it stands in.
fn code(text: &str) -> String {
    let text = printable(text).replace('`', "'").replace('|', "\\|");
    format!("`{text}`")
}
