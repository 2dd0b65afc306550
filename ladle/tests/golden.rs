//! Runs every script of `tests/golden/`: lines beginning with `>` are commands, what follows is their output.
//! `UPDATE_GOLDEN=1` writes the output that is seen instead of comparing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

use ladle::check::check;
use ladle::plan::{Current, plan_addnodes};
use ladle::show;
use model::NodeName;
use model::spec::LadleSpec;
use std::fmt::Write as _;
use std::path::Path;

struct Script {
    spec: LadleSpec,
    use_proxy: bool,
    state: Current,
}

impl Script {
    fn run(&mut self, command: &str) -> String {
        match command.split_once(' ').unwrap_or((command, "")) {
            ("init", settings) => self.init(settings),
            ("addnodes", nodes) => self.addnodes(nodes),
            ("layout", "") => show::layout(&self.state),
            ("entrypoints", "") => self.entry_points(),
            _ => panic!("unknown command {command}"),
        }
    }

    fn init(&mut self, settings: &str) -> String {
        *self = Script { spec: LadleSpec::default(), use_proxy: false, state: Current::empty() };
        for (name, value) in settings.split(' ').map(|setting| setting.split_once('=').unwrap()) {
            match name {
                "repfactor" => self.spec.repfactor = value.parse().unwrap(),
                "proxies" => self.use_proxy = value == "yes",
                "monitors" => self.spec.monitors_num = value.parse().unwrap(),
                "pg" => self.spec.pgs_initial_port = value.parse().unwrap(),
                _ => panic!("unknown setting {name}"),
            }
        }
        String::new()
    }

    fn addnodes(&mut self, nodes: &str) -> String {
        let nodes: Vec<NodeName> = nodes.split(',').map(NodeName::from).collect();
        match plan_addnodes(&self.spec, self.use_proxy, &self.state, &nodes) {
            Ok(plan) => {
                self.state = self.state.clone().after(&plan);
                assert_eq!(check(&self.spec, self.use_proxy, &self.state), Vec::<String>::new());
                plan.to_string()
            }
            Err(error) => format!("error: {error}\n"),
        }
    }

    fn entry_points(&self) -> String {
        let line = |(node, layout): (&NodeName, &model::layout::NodeLayout)| {
            let ports = layout.proxies.iter().map(|proxy| format!("{node}:{} {}\n", proxy.port, proxy.rep_group));
            ports.collect::<String>()
        };
        self.state.layouts.iter().map(line).collect()
    }
}

fn replay(text: &str) -> String {
    let mut script = Script { spec: LadleSpec::default(), use_proxy: false, state: Current::empty() };
    let mut output = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(output, "{line}").unwrap();
        let Some(command) = line.strip_prefix("> ") else { continue };
        output.push_str(&script.run(command));
        // The recorded output; a comment or an empty line is the author's.
        while lines.next_if(|line| !line.is_empty() && !line.starts_with(['>', '#'])).is_some() {}
    }
    output
}

#[test]
fn scripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let recorded = std::fs::read_to_string(&path).unwrap();
        let seen = replay(&recorded);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &seen).unwrap();
        } else {
            assert_eq!(seen, recorded, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 3);
}
