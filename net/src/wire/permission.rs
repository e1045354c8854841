//! Which role may use which opcode. What is not listed is denied.

use super::Opcode;
use crate::tls::Role;

/// Whether `role` may use `opcode`.
///
/// `admin` and `server` may use everything; `client` reads and writes data but changes no roles and no log; `cdc` may
/// only show that it is alive until its own stream exists.
pub const fn allowed(role: Role, opcode: Opcode) -> bool {
    match role {
        Role::Admin | Role::Server => true,
        Role::Client => matches!(
            opcode,
            Opcode::Ping
                | Opcode::Quit
                | Opcode::Select
                | Opcode::Begin
                | Opcode::Commit
                | Opcode::Abort
                | Opcode::Get
                | Opcode::Set
                | Opcode::Del
                | Opcode::MGet
                | Opcode::MSet
                | Opcode::MDel
                | Opcode::Stat
                | Opcode::Wait
        ),
        Role::Cdc => matches!(opcode, Opcode::Ping | Opcode::Quit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, spelled out: one row per opcode, one column per role (client, admin, server, cdc).
    const TABLE: [(Opcode, [bool; 4]); 23] = [
        (Opcode::Ping, [true, true, true, true]),
        (Opcode::Get, [true, true, true, false]),
        (Opcode::Set, [true, true, true, false]),
        (Opcode::Del, [true, true, true, false]),
        (Opcode::Select, [true, true, true, false]),
        (Opcode::MGet, [true, true, true, false]),
        (Opcode::MSet, [true, true, true, false]),
        (Opcode::MDel, [true, true, true, false]),
        (Opcode::Begin, [true, true, true, false]),
        (Opcode::Commit, [true, true, true, false]),
        (Opcode::Abort, [true, true, true, false]),
        (Opcode::Stat, [true, true, true, false]),
        (Opcode::ReplicaOf, [false, true, true, false]),
        (Opcode::Promote, [false, true, true, false]),
        (Opcode::StepDown, [false, true, true, false]),
        (Opcode::Checkpoint, [false, true, true, false]),
        (Opcode::FlushDb, [false, true, true, false]),
        (Opcode::Hold, [false, true, true, false]),
        (Opcode::Release, [false, true, true, false]),
        (Opcode::ReadLog, [false, true, true, false]),
        (Opcode::Replication, [false, true, true, false]),
        (Opcode::Wait, [true, true, true, false]),
        (Opcode::Quit, [true, true, true, true]),
    ];

    #[test]
    fn every_role_and_opcode() {
        assert_eq!(TABLE.map(|(opcode, _)| opcode), Opcode::ALL);
        for (opcode, row) in TABLE {
            for (role, expected) in [Role::Client, Role::Admin, Role::Server, Role::Cdc].into_iter().zip(row) {
                assert_eq!(allowed(role, opcode), expected, "{role:?} {opcode:?}");
            }
        }
    }
}
