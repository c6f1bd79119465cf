//! What the running kernel says about itself, its sockets and its processes, outside of eBPF.

pub mod baseline;
pub mod cgroups;
pub mod container;
mod mountinfo;
mod netlink;
pub mod netns;
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
