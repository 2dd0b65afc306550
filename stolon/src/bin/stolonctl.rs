//! stolonctl: looks at and changes a stolon cluster.

use std::process::ExitCode;
use stolon::cli::CTL_PREFIX;
use stolon::ctl::{CtlArgs, run};

fn main() -> ExitCode {
    let args: CtlArgs = common::cli::parse_as_go(&[CTL_PREFIX]);
    args.common.start_logging();
    common::exit::report(common::runtime::block_on(run(args)))
}
