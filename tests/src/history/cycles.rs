//! Finding cycles: strongly connected components first, a short cycle in each of them second.
//!
//! The search goes from few kinds of edges to all of them, so that each component is reported as the worst thing it
//! is: a cycle that needs no clock before one that does, writes alone before reads. A component in which something
//! was already reported is not reported again under a milder name.

use std::collections::{BTreeMap, VecDeque};

use super::anomaly::{CycleClass, CycleOrder, Report};
use super::graph::{EdgeKind, Graph, HOP, Step};

/// Edges that all searches for short cycles together may look at. Beyond it a component is reported by the first cycle
/// found in it, which need not be its shortest; each is reported in any case.
const SEARCH_EDGES_MAX: u64 = 60_000_000;

/// The part of the budget that one search may use.
const SEARCH_SHARE: u64 = 8;

/// Reports a short cycle for every component that has one.
pub(super) fn check(graph: &Graph, report: &mut Report) {
    let (ww, wr, rw) = (EdgeKind::WriteWrite.bit(), EdgeKind::WriteRead.bit(), EdgeKind::ReadWrite.bit());
    let (session, real_time) = (EdgeKind::Session.bit(), EdgeKind::RealTime.bit());
    let everything = ww | wr | rw | session | real_time | HOP;
    if components(graph, everything).is_empty() {
        return;
    }
    let mut search = Search::new(graph);
    for order in [0, session, session | real_time] {
        // What a cycle must begin with, and what it may go on with.
        let order = order | HOP;
        let passes =
            [(ww, &[ww | order][..]), (wr, &[ww | wr | order][..]), (rw, &[ww | wr | order, ww | wr | rw | order][..])];
        for (begin, paths) in passes {
            let mask = paths[paths.len() - 1] | begin;
            for members in components(graph, mask) {
                if members.iter().any(|member| search.reported[*member as usize]) {
                    continue;
                }
                search.enter(&members);
                if let Some(edges) = paths.iter().find_map(|path| search.shortest(&members, begin, *path)) {
                    let steps = steps(graph, &edges);
                    let (class, order) = classify(&steps);
                    for step in &steps {
                        search.reported[step.from] = true;
                    }
                    report.add_cycle(class, order, steps);
                }
            }
        }
    }
}

/// The strongly connected components of more than one node, over the edges of a mask; each sorted, in the order of
/// their first members.
fn components(graph: &Graph, mask: u8) -> Vec<Vec<u32>> {
    const UNSEEN: u32 = u32::MAX;
    let nodes = graph.node_count();
    let mut order = vec![UNSEEN; nodes];
    let mut low = vec![UNSEEN; nodes];
    let mut open = vec![false; nodes];
    let mut stack: Vec<u32> = Vec::new();
    let mut path: Vec<(u32, usize)> = Vec::new();
    let mut count = 0;
    let mut found = BTreeMap::new();
    for root in 0..nodes as u32 {
        if order[root as usize] != UNSEEN {
            continue;
        }
        path.push((root, graph.edges_of(root).start));
        while let Some((node, place)) = path.last_mut() {
            let here = *node as usize;
            if order[here] == UNSEEN {
                (order[here], low[here], open[here]) = (count, count, true);
                count += 1;
                stack.push(*node);
            }
            if *place < graph.edges_of(*node).end {
                let edge = graph.edge(*place);
                *place += 1;
                let there = edge.to as usize;
                if !edge.is_in(mask) {
                    continue;
                }
                if order[there] == UNSEEN {
                    path.push((edge.to, graph.edges_of(edge.to).start));
                } else if open[there] {
                    low[here] = low[here].min(order[there]);
                }
                continue;
            }
            path.pop();
            if let Some((parent, _)) = path.last() {
                let parent = *parent as usize;
                low[parent] = low[parent].min(low[here]);
            }
            if low[here] == order[here] {
                let first = stack.iter().rposition(|member| *member as usize == here).unwrap_or(0);
                let mut members = stack.split_off(first);
                members.iter().for_each(|member| open[*member as usize] = false);
                if members.len() > 1 {
                    members.sort_unstable();
                    found.insert(members[0], members);
                }
            }
        }
    }
    found.into_values().collect()
}

/// Breadth-first searches inside one component; the arrays are shared by all of them.
struct Search<'g> {
    graph: &'g Graph,
    /// Transactions that are part of a reported cycle.
    reported: Vec<bool>,
    /// In which component a node was last.
    component: Vec<u32>,
    component_number: u32,
    /// In which round a node was last reached, how far from the start, and over which edge.
    round: Vec<u32>,
    round_number: u32,
    distance: Vec<u32>,
    arrived_over: Vec<usize>,
    edges_left: u64,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph) -> Search<'g> {
        let nodes = graph.node_count();
        Search {
            graph,
            reported: vec![false; nodes],
            component: vec![0; nodes],
            component_number: 0,
            round: vec![0; nodes],
            round_number: 0,
            distance: vec![0; nodes],
            arrived_over: vec![0; nodes],
            edges_left: SEARCH_EDGES_MAX,
        }
    }

    /// Confines what follows to one component.
    fn enter(&mut self, members: &[u32]) {
        self.component_number += 1;
        for member in members {
            self.component[*member as usize] = self.component_number;
        }
    }

    /// The cycle with the fewest transactions that begins with an edge of the kind `begin` and goes on over edges of
    /// `path`, as places of edges.
    fn shortest(&mut self, members: &[u32], begin: u8, path: u8) -> Option<Vec<usize>> {
        let mut best: Option<Vec<usize>> = None;
        let mut best_length = u32::MAX;
        let floor = self.edges_left - self.edges_left / SEARCH_SHARE;
        for member in members {
            for place in self.graph.edges_of(*member) {
                let edge = self.graph.edge(place);
                if !edge.is_in(begin) || self.component[edge.to as usize] != self.component_number {
                    continue;
                }
                let first = u32::from(!self.graph.is_hub(edge.to));
                if let Some((rest, length)) = self.way(edge.to, *member, first, best_length, path) {
                    best_length = length;
                    best = Some(std::iter::once(place).chain(rest).collect());
                }
                if best_length <= 2 || self.edges_left <= floor {
                    return best;
                }
            }
        }
        best
    }

    /// A way between two nodes with fewer than `limit` transactions, if there is one: the places of its edges, and
    /// the number of transactions. Reaching a hub costs nothing.
    fn way(&mut self, from: u32, to: u32, first: u32, limit: u32, path: u8) -> Option<(Vec<usize>, u32)> {
        self.round_number += 1;
        let mut queue = VecDeque::from([(from, first)]);
        self.round[from as usize] = self.round_number;
        self.distance[from as usize] = first;
        while let Some((node, distance)) = queue.pop_front() {
            if distance > self.distance[node as usize] {
                continue;
            }
            if node == to {
                return Some((self.way_back(from, to), distance));
            }
            for place in self.graph.edges_of(node) {
                self.edges_left = self.edges_left.saturating_sub(1);
                let edge = self.graph.edge(place);
                let next = edge.to as usize;
                if !edge.is_in(path) || self.component[next] != self.component_number {
                    continue;
                }
                let cost = u32::from(!self.graph.is_hub(edge.to));
                let reached = distance + cost;
                let known = self.round[next] == self.round_number && self.distance[next] <= reached;
                if known || reached >= limit {
                    continue;
                }
                self.round[next] = self.round_number;
                self.distance[next] = reached;
                self.arrived_over[next] = place;
                if cost == 0 {
                    queue.push_front((edge.to, reached));
                } else {
                    queue.push_back((edge.to, reached));
                }
            }
        }
        None
    }

    fn way_back(&self, from: u32, to: u32) -> Vec<usize> {
        let mut places = Vec::new();
        let mut node = to;
        while node != from {
            let place = self.arrived_over[node as usize];
            places.push(place);
            node = self.graph.edge(place).from;
        }
        places.reverse();
        places
    }
}

/// Turns edges, some of which lead through hubs, into steps from transaction to transaction.
fn steps(graph: &Graph, places: &[usize]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for place in places {
        let edge = graph.edge(*place);
        match (edge.kind, steps.last_mut()) {
            (Some(kind), _) => {
                let (from, to) = (edge.from as usize, edge.to as usize);
                steps.push(Step { from, to, kind, key: edge.key });
            }
            (None, Some(step)) => step.to = edge.to as usize,
            (None, None) => {}
        }
    }
    steps
}

/// Names a cycle by its edges.
fn classify(steps: &[Step]) -> (CycleClass, CycleOrder) {
    let count = |kind: EdgeKind| steps.iter().filter(|step| step.kind == kind).count();
    let class = match (count(EdgeKind::ReadWrite), count(EdgeKind::WriteRead)) {
        (0, 0) => CycleClass::G0,
        (0, _) => CycleClass::G1c,
        (1, _) => CycleClass::GSingle,
        _ => CycleClass::G2Item,
    };
    let order = if count(EdgeKind::RealTime) > 0 {
        CycleOrder::RealTime
    } else if count(EdgeKind::Session) > 0 {
        CycleOrder::Session
    } else {
        CycleOrder::Data
    };
    (class, order)
}
