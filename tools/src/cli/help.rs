//! Help texts, one entry per command. The grammar's usage errors quote them too.

/// A command as `help` shows it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What follows the name.
    pub arguments: &'static str,
    /// One line.
    pub about: &'static str,
    /// More lines for `help NAME`; may be empty.
    pub detail: &'static str,
}

impl Entry {
    /// `set KEY VALUE`
    pub fn usage(&self) -> String {
        if self.arguments.is_empty() { self.name.to_owned() } else { format!("{} {}", self.name, self.arguments) }
    }
}

const fn entry(name: &'static str, arguments: &'static str, about: &'static str, detail: &'static str) -> Entry {
    Entry { name, arguments, about, detail }
}

/// Every command, in the order of the list.
pub const COMMANDS: &[Entry] = &[
    entry("ping", "", "check that the server answers", ""),
    entry(
        "select",
        "PARTITION",
        "choose the partition to work on",
        "Partitions 1 to 16 hold data; 0 describes the node and is read-only.\nExample: select 1",
    ),
    entry("get", "KEY", "read a key", "Prints 'OK: value', or (nil) if there is no such key."),
    entry(
        "set",
        "KEY VALUE",
        "write a key",
        "Outside a transaction this commits by itself.\nExample: set mykey \"Hello Turnstone\"\nBytes: set k \"\\x00\\xff\"",
    ),
    entry("del", "KEY", "delete a key", "Succeeds whether or not the key exists."),
    entry("mget", "KEY…", "read several keys from one snapshot", ""),
    entry("mset", "KEY VALUE…", "write several keys, all or none", "Example: mset a 1 b 2"),
    entry("mdel", "KEY…", "delete several keys, all or none", "Prints how many of them existed."),
    entry("begin", "", "open a transaction", "Reads see one snapshot; writes wait for commit."),
    entry(
        "commit",
        "",
        "commit the transaction",
        "With --verbose the position is printed.\nCONFLICT means that another transaction came first: begin again.",
    ),
    entry("abort", "", "discard the transaction", ""),
    entry("stat", "", "describe the partition (on 0: the node)", ""),
    entry("checkpoint", "", "move committed changes into value log and index now (admin)", ""),
    entry(
        "flushdb",
        "[--yes]",
        "delete everything in the partition (admin)",
        "Asks for the partition's number; in scripts --yes is needed instead.",
    ),
    entry(
        "promote",
        "[MIN_REPLICAS] [force]",
        "make the partition a leader (admin)",
        "MIN_REPLICAS followers must hold a commit before it is acknowledged; as before if not given.\n\
         Force goes on without the promises of the others: acknowledged writes may be lost.",
    ),
    entry("stepdown", "", "refuse writes until promoted (admin)", ""),
    entry(
        "replicaof",
        "HOST:PORT PARTITION [force] | no one",
        "follow a partition elsewhere, or stop (admin)",
        "Example: replicaof localhost:6379 1\nForce sets aside what this node has shown and the leader does not have.",
    ),
    entry(
        "min_replicas",
        "N",
        "followers that must hold a commit, from now on (admin)",
        "In force once enough followers hold the change.",
    ),
    entry(
        "replicas",
        "[forget ID]",
        "list who holds copies, or let one go for good (admin)",
        "Example: replicas forget 00c0ffee00c0ffee",
    ),
    entry("role", "", "say what the partition is: leader, follower, or neither (admin)", ""),
    entry(
        "wait",
        "POSITION [SECONDS]",
        "wait until a position is shown here",
        "To read on a follower what was committed elsewhere.\nExample: wait 1:3:4711 5",
    ),
    entry("digest", "", "hash everything that is shown, to compare nodes (admin)", ""),
    entry(
        "hold",
        "NAME [LIMIT]",
        "keep the log from now on, up to LIMIT bytes (admin)",
        "LIMIT is a size such as 64MB; 1GiB if not given.",
    ),
    entry("release", "NAME", "let a hold go (admin)", ""),
    entry("log", "VERSION", "list changes from a version on (admin)", ""),
    entry("help", "[COMMAND]", "this list, or more about one command", ""),
    entry("clear", "", "clear the screen", ""),
    entry("quit", "", "leave ('exit' too)", ""),
];

/// The entry of a command.
pub fn find(name: &str) -> Option<&'static Entry> {
    COMMANDS.iter().find(|entry| entry.name == name)
}

/// What `help` prints: the list, or one command.
pub fn text(entry: Option<&Entry>) -> String {
    match entry {
        Some(entry) if entry.detail.is_empty() => format!("{}\n  {}\n", entry.usage(), entry.about),
        Some(entry) => {
            format!("{}\n  {}\n  {}\n", entry.usage(), entry.about, entry.detail.replace('\n', "\n  "))
        }
        None => {
            let mut text = String::new();
            for entry in COMMANDS {
                text.push_str(&format!("  {:<40} {}\n", entry.usage(), entry.about));
            }
            text.push_str(
                "Words are quoted as in a shell: 'as it is', \"with \\n and \\xHH\". # begins a comment line.\n",
            );
            text
        }
    }
}
