//! The link on a reactor: told of datagrams by a multishot poll.

use std::io;
use std::os::fd::AsFd;

use crate::base::Nanos;
use crate::io::arena::ArenaView;
use crate::io::quic::keys::{LinkAnswer, LinkQuestion};
use crate::io::quic::link::Link;
use crate::io::ring::{FileId, Ring};
use crate::reactor::{Actor, Completion, Receiver, Sender};

/// The only operation's token.
const POLL: u64 = 1;

/// A [`Link`] with its place on a ring.
pub struct LinkActor {
    link: Link<ArenaView>,
    socket: FileId,
    polling: bool,
    control: Option<(Receiver<LinkQuestion>, Sender<LinkAnswer>)>,
}

impl LinkActor {
    /// Fails when the process or the ring has no room for another file.
    pub fn new(link: Link<ArenaView>, ring: &mut Ring) -> io::Result<LinkActor> {
        let socket = link.as_fd().try_clone_to_owned()?;
        let Some(socket) = ring.add_file(socket) else {
            return Err(io::Error::other("the ring has no room for the link's socket"));
        };
        Ok(LinkActor { link, socket, polling: false, control: None })
    }

    /// Lets the control plane ask it.
    pub fn answering(mut self, asked: Receiver<LinkQuestion>, answers: Sender<LinkAnswer>) -> LinkActor {
        self.control = Some((asked, answers));
        self
    }

    fn answer(&mut self, now: Nanos) -> bool {
        let Some((asked, answers)) = &mut self.control else { return false };
        let answer = match asked.pop_if_answerable(answers) {
            None => return false,
            Some(LinkQuestion::Keys) => LinkAnswer::Keys(self.link.keys()),
            Some(LinkQuestion::Take(keys)) => LinkAnswer::Taken(self.link.take_keys(now, *keys)),
        };
        answers.push(answer);
        true
    }
}

impl Actor<Ring> for LinkActor {
    fn name(&self) -> &'static str {
        match self.link.remote() {
            None => "link",
            Some(0) => "link 2",
            Some(_) => "link 3",
        }
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        if !self.polling {
            self.polling = true;
            ring.poll_multishot(POLL, self.socket);
        }
        let worked = self.link.turn(now);
        self.answer(now) || worked
    }

    fn complete(&mut self, _: Nanos, _: &mut Ring, completion: Completion) {
        self.link.set_readable();
        self.polling = completion.more();
    }

    fn ready(&self) -> bool {
        self.link.ready() || self.control.as_ref().is_some_and(|(asked, _)| !asked.is_empty())
    }

    fn deadline(&self) -> Option<Nanos> {
        self.link.deadline()
    }

    fn stop(&mut self, _: Nanos) {
        self.link.stop();
    }

    fn stopped(&self) -> bool {
        self.link.stopped()
    }
}
