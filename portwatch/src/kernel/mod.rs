mod mountinfo;
mod netlink;
pub mod netns;
pub mod proc_net;
pub mod self_net;
pub mod sock_diag;
pub mod socket_row;
#[cfg(test)]
mod testing;
