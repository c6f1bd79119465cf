//! The tests, one file per client.

mod curl;
mod java;
mod nginx;
mod node;
mod postgresql;
mod python;
mod python_sites;
mod redis;
mod telling;
mod verdicts;

use crate::Stopped;
use crate::stage::Stage;

pub struct Scenario {
    pub name: &'static str,
    pub play: fn(&Stage) -> Result<(), Stopped>,
}

pub const ALL: &[Scenario] = &[
    Scenario { name: "python_requests_each_connects", play: python::each_connects },
    Scenario { name: "python_requests_session_connects_once", play: python::session_connects_once },
    Scenario { name: "python_requests_of_threads", play: python::threads },
    Scenario { name: "python_call_sites_3_9", play: |stage| python_sites::of_version(stage, "3.9") },
    Scenario { name: "python_call_sites_3_10", play: |stage| python_sites::of_version(stage, "3.10") },
    Scenario { name: "python_call_sites_3_11", play: |stage| python_sites::of_version(stage, "3.11") },
    Scenario { name: "python_call_sites_3_12", play: |stage| python_sites::of_version(stage, "3.12") },
    Scenario { name: "python_call_sites_3_13", play: |stage| python_sites::of_version(stage, "3.13") },
    Scenario { name: "python_call_sites_above_packages", play: python_sites::above_packages },
    Scenario { name: "python_call_sites_of_one_shots", play: python_sites::one_shots },
    Scenario { name: "curl_one_shot", play: curl::one_shot },
    Scenario { name: "curl_refused_keeps_exit_code", play: curl::refused },
    Scenario { name: "curl_children_of_a_loop", play: curl::children_of_a_loop },
    Scenario { name: "curl_killed_by_signal", play: curl::killed },
    Scenario { name: "nginx_proxy_without_keepalive", play: nginx::proxy },
    Scenario { name: "nginx_upstream_down", play: nginx::upstream_down },
    Scenario { name: "redis_benchmark", play: redis::benchmark },
    Scenario { name: "redis_benchmark_refused", play: redis::refused },
    Scenario { name: "node_http_without_keepalive", play: node::without_keepalive },
    Scenario { name: "postgresql_psql", play: postgresql::psql },
    Scenario { name: "java_sockets", play: java::sockets },
    Scenario { name: "verdict_python_http", play: verdicts::python_http },
    Scenario { name: "verdict_server_closes_or_resets", play: verdicts::server_closes_or_resets },
    Scenario { name: "verdict_leak_and_pools", play: verdicts::leak_and_pools },
    Scenario { name: "verdict_storm_and_patience", play: verdicts::storm_and_patience },
    Scenario { name: "verdict_spread_is_information", play: verdicts::spread_is_information },
    Scenario { name: "verdict_threads_and_forks", play: verdicts::threads_and_forks },
    Scenario { name: "verdict_node_agent", play: verdicts::node_agent },
    Scenario { name: "verdict_curl_loop", play: verdicts::curl_loop },
    Scenario { name: "verdict_redis_benchmark", play: verdicts::redis_benchmark },
];
