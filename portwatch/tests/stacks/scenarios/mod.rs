//! What is played.

mod exits;
mod generations;
mod paths;
mod symbols;
mod unwinders;

use crate::Stopped;
use crate::stage::Stage;

pub struct Scenario {
    pub name: &'static str,
    pub play: fn(&Stage) -> Result<(), Stopped>,
}

pub const ALL: &[Scenario] = &[
    Scenario { name: "known_paths", play: paths::known },
    Scenario { name: "known_paths_walked_plainly", play: paths::known_plainly },
    Scenario { name: "connect_and_exit", play: exits::connect_and_exit },
    Scenario { name: "dlopen_at_the_same_address", play: generations::dlopen_at_the_same_address },
    Scenario { name: "exec", play: generations::exec },
    Scenario { name: "fork_without_exec", play: generations::fork_without_exec },
    Scenario { name: "program_replaced_on_disk", play: generations::replaced_on_disk },
    Scenario { name: "program_deleted", play: generations::deleted },
    Scenario { name: "container", play: generations::container },
    Scenario { name: "debug_link", play: symbols::debug_link },
    Scenario { name: "build_id_directory", play: symbols::build_id_directory },
    Scenario { name: "split_dwarf", play: symbols::split_dwarf },
    Scenario { name: "dwz", play: symbols::dwz },
    Scenario { name: "stripped", play: symbols::stripped },
    Scenario { name: "library_pattern", play: symbols::library_pattern },
    Scenario { name: "hostile_names", play: symbols::hostile_names },
    Scenario { name: "same_as_framehop", play: unwinders::framehop },
];
