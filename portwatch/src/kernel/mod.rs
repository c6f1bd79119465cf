//! What the running kernel is and can do, and what it says about its sockets and processes, outside of eBPF.
//! Everything here reads; nothing changes the host.

pub mod ancestry;
pub mod baseline;
pub mod btf;
pub mod cgroups;
pub mod clock;
pub mod container;
pub mod features;
pub mod host;
mod mountinfo;
mod netlink;
pub mod netns;
pub mod offsets;
mod private_mount;
pub mod proc_dir;
pub mod proc_net;
pub mod process_tree;
pub mod processes;
pub mod self_net;
pub mod sock_diag;
pub mod socket_owners;
pub mod socket_row;
#[cfg(test)]
mod testing;
pub mod tracefs;
pub mod tracepoint_format;
