//! stolon-proxy: forwards connections to the master of a stolon cluster.

use std::process::ExitCode;
use stolon::cli::PROXY_PREFIX;
use stolon::proxy::{ProxyArgs, run};

fn main() -> ExitCode {
    let args: ProxyArgs = common::cli::parse(&[PROXY_PREFIX]);
    args.common.start_logging();
    common::exit::report(common::runtime::block_on(run(args)))
}
