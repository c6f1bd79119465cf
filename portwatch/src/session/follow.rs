//! Which processes a run selects, beyond those that were typed.

use anyhow::{Result, bail};

use crate::bpf::Tracing;
use crate::kernel::process_tree;

/// # Errors
/// When there is no such process: exit code 1.
pub fn must_exist(pid: u32) -> Result<()> {
    if !process_tree::exists(pid) {
        bail!(
            "cannot trace process {pid}: there is no such process\n  next: look it up with `pgrep -a NAME` or `ps -ef`"
        );
    }
    Ok(())
}

/// Selects every living descendant. The fork hook is attached already, so what is born meanwhile is selected by it;
/// what was born just before is found here, and the search is repeated until it finds nothing new.
pub fn select_descendants(tracing: &mut Tracing, roots: &[u32]) -> Result<()> {
    let mut known: Vec<u32> = tracing.selected()?;
    loop {
        let mut is_complete = true;
        for pid in process_tree::descendants(roots)? {
            if !known.contains(&pid) {
                tracing.select(pid, true)?;
                known.push(pid);
                is_complete = false;
            }
        }
        if is_complete {
            return Ok(());
        }
    }
}
