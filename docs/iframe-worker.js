/* Search from a disk: browsers start no worker for file:// pages, so a frame that cannot be seen does its work. */
"use strict";
(function () {
  if (location.protocol !== "file:") return;
  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      const page = this;
      inside.document.open();
      inside.document.write("<!doctype html><html><body></body></html>");
      inside.document.close();
      inside.postMessage = function (data) {
        const event = new MessageEvent("message", { data: data });
        page.dispatchEvent(event);
        if (typeof page.onmessage === "function") page.onmessage(event);
      };
      inside.importScripts = function () {
        let done = Promise.resolve();
        Array.from(arguments).forEach(function (source) {
          done = done.then(function () { return load(inside.document, new URL(source, address).href); });
        });
        return done;
      };
      load(inside.document, String(address)).then(function () {
        page.waiting.forEach(function (data) { page.deliver(data); });
        page.waiting = null;
      });
    }
    deliver(data) {
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data: data }));
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.deliver(data);
    }
    terminate() { this.frame.remove(); }
  }
  function load(where, source) {
    return new Promise(function (resolve, reject) {
      const script = where.createElement("script");
      script.src = source;
      script.onload = resolve;
      script.onerror = reject;
      where.body.appendChild(script);
    });
  }
  window.Worker = IFrameWorker;
})();
